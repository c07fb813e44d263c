"""Doors to holdfast under the names that training scripts import."""
