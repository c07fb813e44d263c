"""The part of the core that imports torch."""

from importlib.util import find_spec

from crashproof.errors import MissingExtra

if find_spec("torch") is None or find_spec("numpy") is None:
    raise MissingExtra("torch")
