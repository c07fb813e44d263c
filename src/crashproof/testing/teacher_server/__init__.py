"""A fake paid teacher with exact billing and injected faults."""

from __future__ import annotations

from crashproof.testing.teacher_server.completions import Prices
from crashproof.testing.teacher_server.counts import SeenRequest, TeacherCounts
from crashproof.testing.teacher_server.echo import KeyEcho
from crashproof.testing.teacher_server.faults import Fault, Faults, FaultTimes
from crashproof.testing.teacher_server.providers import Provider
from crashproof.testing.teacher_server.questions import request_hash
from crashproof.testing.teacher_server.server import TeacherServer

__all__ = [
    "Fault",
    "FaultTimes",
    "Faults",
    "KeyEcho",
    "Prices",
    "Provider",
    "SeenRequest",
    "TeacherCounts",
    "TeacherServer",
    "request_hash",
]
