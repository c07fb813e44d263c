"""Entry points of crashproof, under the names that training scripts import."""
