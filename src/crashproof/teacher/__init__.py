"""Query a paid teacher; store every answer."""

from __future__ import annotations

from importlib.util import find_spec

from crashproof.errors import MissingExtra

if any(find_spec(name) is None for name in ("httpx2", "jsonschema", "yaml")):
    raise MissingExtra("teacher")

from crashproof.teacher.client.answers import Answer
from crashproof.teacher.client.client import AsyncTeacher
from crashproof.teacher.client.endpoint import Endpoint
from crashproof.teacher.client.limits import Limits
from crashproof.teacher.client.prices import PriceTable
from crashproof.teacher.client.retry import Patience
from crashproof.teacher.client.synchronous import Teacher

__all__ = ["Answer", "AsyncTeacher", "Endpoint", "Limits", "Patience", "PriceTable", "Teacher"]
