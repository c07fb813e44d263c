"""Knowledge distillation that resumes exactly.

From the ground up: `settings` (the config), `text` (tokenizers and templates), `losses`, `data` (files to batches),
`models`, `tasks` (generated data), `teachers`, `evaluation`, `recipes` (what is trained), `training` (the loop).
`command` is what `python -m training.distill_<recipe>` calls.
"""

from importlib.util import find_spec

from crashproof.errors import MissingExtra

_NEEDED = ("llguidance", "numpy", "pydantic", "rich", "safetensors", "tokenizers", "torch", "transformers", "yaml")

if any(find_spec(name) is None for name in _NEEDED):
    raise MissingExtra("distillation")
