"""What `crashproof generate` writes is what the trainers read: the whole way through a teacher's server."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from learned_text import learned, write_lines
from tool_lines import CLOCK, WEATHER
from typer.testing import CliRunner

from crashproof.cli.app import app
from crashproof.distillation.data.answered.prompts import load_prompts
from crashproof.distillation.data.api_data import ApiData
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.pytorch.interrupts import Interrupts
from crashproof.samples.rules import SampleRules
from crashproof.teacher import AsyncTeacher, Endpoint, Teacher
from crashproof.testing import TeacherServer

CALL = {"id": "call_9", "type": "function", "function": {"name": "search", "arguments": '{"city": "Rome"}'}}
TICK = {"id": "call_8", "type": "function", "function": {"name": "clock", "arguments": ""}}
ANSWERS: dict[str, Any] = {
    "plain": "Four.",
    "thinks": {"role": "assistant", "content": "Four.", "reasoning_content": "Add them."},
    "calls": {"role": "assistant", "content": None, "tool_calls": [CALL]},
    "calls without arguments": {"role": "assistant", "content": "", "tool_calls": [TICK]},
    "refuses": {"role": "assistant", "content": None, "refusal": "I cannot help."},
    "speaks in parts": {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "Add."}, {"type": "text", "text": "Four."}],
    },
    "says nothing": " ",
}
_HERMES = '<tool_call>\n{"name": "search", "arguments": {"city": "Rome"}}\n</tool_call>'
_TICK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
LEARNED = {
    "plain": "Four.",
    "thinks": "Four.",
    "calls": _HERMES,
    "calls without arguments": _TICK,
    "speaks in parts": "Four.",
}


def answer(body: dict[str, Any]) -> Any:
    content = body["messages"][-1]["content"]
    return ANSWERS[content if isinstance(content, str) else content[0]["text"]]


def in_parts(asked: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": asked}]}]


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer(answer) as running:
        yield running


@pytest.fixture
def generate(server: TeacherServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")

    def run(*lines: Any) -> Path:
        prompts, out = write_lines(tmp_path / "prompts.jsonl", *lines), tmp_path / "answers.jsonl"
        words = ["generate", "--prompts", prompts, "--model", "teacher", "--out", out, "--base-url", server.base_url]
        CliRunner().invoke(app, [str(word) for word in words])
        return out

    return run


def test_every_answer_is_learned_or_left_out_with_its_reason(
    generate: Callable[..., Path], field_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    out = generate(*({"messages": in_parts(asked), "tools": [WEATHER, CLOCK]} for asked in ANSWERS))

    for recipe in ("kd", "answer_generation"):
        assert list(LEARNED.values()) == learned(recipe, out, field_tokenizer)
    assert [_HERMES, _TICK] == learned("process", out, field_tokenizer)
    assert [_HERMES, _TICK] == learned("tool_select", out, field_tokenizer)
    for reason in ("the assistant refuses", "the assistant's answer is empty", "it must have at least one tool call"):
        assert f"are left out because {reason}" in caplog.text


def test_answers_to_prompts_of_text_carry_their_thoughts(
    generate: Callable[..., Path], tmp_path: Path, field_tokenizer: Any
) -> None:
    out = generate(*({"prompt": asked} for asked in ANSWERS))
    failed = [json.loads(line) for line in (tmp_path / "answers.failed.jsonl").read_text().splitlines()]

    assert ["Four."] * 3 == learned("kd", out, field_tokenizer)
    thought = ["Four.", "<think>\nAdd them.\n</think>\n\nFour.", "<think>\nAdd.\n</think>\n\nFour."]
    assert thought == learned("kd", out, field_tokenizer, learn_reasoning=True)
    assert "the teacher refused" in failed[-1]["reason"]


def test_prompts_in_a_compressed_folder_are_asked_in_order(
    generate: Callable[..., Path], tmp_path: Path, server: TeacherServer
) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "b.jsonl").write_text('{"prompt": "thinks"}\n')
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "plain"}\n'))
    command = ["generate", "--prompts", folder, "--model", "teacher", "--base-url", server.base_url, "--out"]

    CliRunner().invoke(app, [str(word) for word in [*command, tmp_path / "out.jsonl"]])
    among = CliRunner().invoke(app, [str(word) for word in [*command, folder / "out.jsonl"]])

    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["plain", "thinks"] == [line["prompt"] for line in written]
    assert "would lie among the prompts" in str(among.exception)


def test_an_earlier_call_without_arguments_can_be_asked_about(
    generate: Callable[..., Path], field_tokenizer: Any
) -> None:
    before = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [TICK]},
        {"role": "tool", "tool_call_id": "call_8", "content": "12:00"},
    ]
    out = generate({"messages": [*before, {"role": "user", "content": "plain"}], "tools": [CLOCK]})

    assert ["Four."] == learned("answer_generation", out, field_tokenizer)
    assert [f"{_TICK}<|end|>\nFour."] == learned("process", out, field_tokenizer)


@pytest.fixture
def train(server: TeacherServer, tmp_path: Path, field_tokenizer: Any, open_tracker: Any) -> Any:
    """What a student learns of prompts that a paid teacher answers while it trains."""

    def learn(*lines: Any, **rules: bool) -> list[str]:
        source = load_prompts(write_lines(tmp_path / "prompts.jsonl", *lines), SampleRules(**rules))
        data = ApiData(
            source,
            field_tokenizer,
            max_length=1024,
            top_k=None,
            ahead_samples=0,
            open_teacher=lambda tracker: nullcontext(None),
            interrupts=Interrupts(),
            rules=SampleRules(**rules),
        )
        endpoint = Endpoint(base_url=server.base_url)
        teacher = Teacher(AsyncTeacher("teacher", store=open_tracker().responses, endpoint=endpoint))
        try:
            data.connect(teacher, iter(range(len(data))))
            rows = [data.batch([index]).labels[0] for index in range(len(data))]
        finally:
            teacher.close()
        return [str(field_tokenizer.decode(row[torch.as_tensor(row != IGNORED)])) for row in rows]

    return learn


def test_a_paid_teachers_answers_are_learned_as_generated_ones_are(
    train: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [{"messages": in_parts(asked), "tools": [WEATHER, CLOCK]} for asked in ANSWERS]

    texts = [text.removesuffix("\n").removesuffix("<|end|>") for text in train(*lines)]

    assert [LEARNED.get(asked, "") for asked in ANSWERS] == texts
    assert "prompts.jsonl, line 5: the assistant refuses. (1 skipped so far)" in caplog.text


def test_a_paid_teachers_thoughts_and_refusals_are_learned_if_asked(train: Any) -> None:
    lines = [
        {"prompt": "thinks"},
        {"messages": in_parts("thinks")},
        {"messages": in_parts("refuses")},
        {"prompt": "refuses"},
    ]

    texts = [
        text.removesuffix("\n").removesuffix("<|end|>")
        for text in train(*lines, learns_reasoning=True, learns_refusals=True)
    ]

    assert ["<think>\nAdd them.\n</think>\n\nFour."] * 2 + ["I cannot help."] * 2 == texts


def test_prompts_with_media_are_not_paid_for(
    train: Any, server: TeacherServer, caplog: pytest.LogCaptureFixture
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    shown = {"messages": [{"role": "user", "content": [{"type": "text", "text": "plain"}, image]}]}

    assert 1 == len(train(shown, {"prompt": "plain"}))
    assert 1 == server.counts.answers_computed
    assert "1 of 2 are left out because a message has an image part" in caplog.text
