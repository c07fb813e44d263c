"""Bytes that survive."""
