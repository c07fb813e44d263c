"""Ask a teacher over HTTP, pay once, keep every answer."""

from __future__ import annotations

from importlib.util import find_spec

from holdfast.errors import MissingExtra

if any(find_spec(name) is None for name in ("httpx2", "jsonschema", "yaml")):
    raise MissingExtra("teacher")

from holdfast.teacher.answers import Answer
from holdfast.teacher.client import AsyncTeacher
from holdfast.teacher.endpoint import Endpoint
from holdfast.teacher.limits import Limits
from holdfast.teacher.patience import Patience
from holdfast.teacher.prices import PriceTable
from holdfast.teacher.synchronous import Teacher

__all__ = ["Answer", "AsyncTeacher", "Endpoint", "Limits", "Patience", "PriceTable", "Teacher"]
