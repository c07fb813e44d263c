"""Knowledge distillation that resumes exactly."""

from importlib.util import find_spec

from crashproof.errors import MissingExtra

_NEEDED = ("llguidance", "numpy", "pydantic", "rich", "safetensors", "tokenizers", "torch", "transformers", "yaml")

if any(find_spec(name) is None for name in _NEEDED):
    raise MissingExtra("distillation")
