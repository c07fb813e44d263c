"""A page to watch runs with: server and page over the reader; never writes."""

from crashproof.optional_dependencies import require_modules

require_modules("page", "anyio", "prometheus_client", "starlette", "uvicorn")
