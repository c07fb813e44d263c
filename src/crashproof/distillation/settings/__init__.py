"""The config of a trainer, section by section."""
