"""Causal language models and their parts."""
