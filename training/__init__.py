"""Entry points: the import paths that training scripts rely on."""
