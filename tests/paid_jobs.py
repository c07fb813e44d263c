"""Jobs of `crashproof generate` against a teacher whose every word is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from crashproof.cli.app import app
from crashproof.errors import CrashproofError
from crashproof.reading.run_reader import RunReader
from crashproof.testing.teacher_server.http_stub import Request, Response

__all__ = ["PRICES", "PaidJob", "ScriptedBodies", "answer_body"]

PRICES = (Decimal(20), Decimal(10), Decimal(120))
"""Dollars per million: of a prompt, from the cache, of an answer."""
_TABLE = "as_of: 2026-01-01\nmodels: {teacher: {input: 20, cached_input: 10, output: 120, batch_share: 0.5}}\n"


@dataclass
class PaidJob:
    """One job, which may be started as often as a test likes."""

    folder: Path
    base_url: str
    questions: tuple[str, ...] = ("What is a keel?", "What is a mast?", "What is a sail?")
    options: tuple[str, ...] = ("--max-tokens", "200")

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(self.folder / "prompts.jsonl", ({"prompt": question} for question in self.questions))
        (self.folder / "prices.yaml").write_text(_TABLE)

    @property
    def out(self) -> Path:
        return self.folder / "answers.jsonl"

    def run(self, *options: object, exit_code: int = 0) -> dict[str, Any]:
        """Its summary for programs."""
        return json.loads(self._invoke("--json", *options, exit_code=exit_code).stdout)

    def told(self, *options: object, exit_code: int = 0) -> str:
        """What it says to people."""
        return self._invoke(*options, exit_code=exit_code).output

    def error(self, *options: object) -> str:
        """The words of the error that ends it."""
        with pytest.raises(CrashproofError) as raised:
            self._invoke(*options, exit_code=2)
        return str(raised.value)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def failed(self) -> list[dict[str, Any]]:
        path = self.folder / "answers.failed.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def problems(self) -> list[str]:
        return RunReader.open(self.folder / "answers.run").problems()

    def _invoke(self, *options: object, exit_code: int) -> Any:
        files = {"--prompts": "prompts.jsonl", "--out": "answers.jsonl", "--prices": "prices.yaml"}
        given = [each for name, file in files.items() for each in (name, self.folder / file)]
        arguments = [*given, "--model", "teacher", "--base-url", self.base_url, *self.options, *options]
        result = CliRunner().invoke(
            app,
            ["generate", *map(str, arguments)],
            env={"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None},
            catch_exceptions=False,
        )
        assert exit_code == result.exit_code, result.output
        return result

    @staticmethod
    def _write(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@dataclass
class ScriptedBodies:
    """The `answer` of a `teaching.http_server`: these bodies in turn with status 200, then the last for ever."""

    bodies: list[Any]
    """JSON values; bytes are sent as they are."""
    content_type: str = "application/json"
    num_sent: int = field(default=0, init=False)

    def __call__(self, request: Request) -> Response:
        body = self.bodies[min(self.num_sent, len(self.bodies) - 1)]
        self.num_sent += 1
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return Response(content_type=self.content_type, pieces=(content,))


def answer_body(text: str | None = "A keel is a long timber.", **others: Any) -> dict[str, Any]:
    """A completion; `choice` and `message` add to its parts, other names to the body."""
    message = {"role": "assistant", "content": text} | others.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | others.pop("choice", {})
    usage = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}
    return {"id": "c", "object": "chat.completion", "model": "teacher", "choices": [choice], "usage": usage} | others
