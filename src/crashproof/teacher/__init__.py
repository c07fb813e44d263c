"""Query a paid teacher; store every answer."""

# ruff: noqa: E402 - a missing extra is reported before anything of it is imported.

from __future__ import annotations

from crashproof.optional_dependencies import require_modules

require_modules("teacher", "httpx2", "jsonschema", "yaml")

from crashproof.teacher.client.answers import Answer
from crashproof.teacher.client.client import AsyncTeacher
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.retry import RetryPolicy
from crashproof.teacher.client.synchronous import Teacher

__all__ = ["Answer", "AsyncTeacher", "Endpoint", "Limits", "PriceTable", "RetryPolicy", "Teacher"]
