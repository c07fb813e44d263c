"""Adapters to training frameworks, one file each."""
