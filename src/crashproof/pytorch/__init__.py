"""The part of the core that imports torch."""

from crashproof.optional_dependencies import require_modules

require_modules("torch", "numpy", "torch")
