"""Ask a teacher over HTTP, pay once, keep every answer."""

from __future__ import annotations

from importlib.util import find_spec

from crashproof.errors import MissingExtra

if any(find_spec(name) is None for name in ("httpx2", "jsonschema", "yaml")):
    raise MissingExtra("teacher")

from crashproof.teacher.answers import Answer
from crashproof.teacher.client import AsyncTeacher
from crashproof.teacher.endpoint import Endpoint
from crashproof.teacher.limits import Limits
from crashproof.teacher.patience import Patience
from crashproof.teacher.prices import PriceTable
from crashproof.teacher.synchronous import Teacher

__all__ = ["Answer", "AsyncTeacher", "Endpoint", "Limits", "Patience", "PriceTable", "Teacher"]
