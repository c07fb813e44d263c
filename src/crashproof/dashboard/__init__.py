"""The dashboard: a read-only server and its page."""

from crashproof.optional_dependencies import require_modules

require_modules("page", "anyio", "prometheus_client", "starlette", "uvicorn")
