"""Knowledge distillation that resumes exactly.

From the ground up: `settings` (the config), `text` (tokenizers and templates), `losses`, `data` (files to batches),
`models`, `tasks` (generated data), `teachers`, `evaluation`, `recipes` (what is trained), `training` (the loop).
`command` is what `python -m training.distill_<recipe>` calls.
"""

from crashproof.optional_dependencies import require_modules

require_modules(
    "distillation",
    *("llguidance", "numpy", "pydantic", "rich", "safetensors", "tokenizers", "torch", "transformers", "yaml"),
)
