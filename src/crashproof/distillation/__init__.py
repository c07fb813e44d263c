"""Knowledge distillation that resumes exactly."""

from crashproof.optional_dependencies import require_modules

require_modules(
    "distillation",
    *("llguidance", "numpy", "pydantic", "rich", "safetensors", "tokenizers", "torch", "transformers", "yaml"),
)
