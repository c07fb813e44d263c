"""Doors to crashproof under the names that training scripts import."""
