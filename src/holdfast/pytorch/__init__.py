"""The part of the core that imports torch."""
