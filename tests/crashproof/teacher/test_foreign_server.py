"""Against a server that nobody here wrote: `transformers serve`, with the official client's message types."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessage
from typer.testing import CliRunner

from crashproof.cli.app import app
from crashproof.distillation.models.causal_lm import new_model, save_model
from crashproof.distillation.settings.models import ModelShape
from crashproof.distillation.text.chat import BUILTIN_TEMPLATE
from crashproof.distillation.text.corpus import builtin_documents
from crashproof.distillation.text.tokenizer import train_tokenizer
from crashproof.teacher import AsyncTeacher, Endpoint, Teacher

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a list?"}]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    tokenizer = train_tokenizer(builtin_documents()[:50], vocab_size=400, folder=folder / "tokenizer")
    tokenizer.chat_template = BUILTIN_TEMPLATE
    model = new_model(ModelShape(d_model=32, num_layers=1), tokenizer=tokenizer, max_length=128)
    save_model(model, tokenizer, folder / "model", origin={"made": "here"})
    return folder / "model"


@pytest.fixture(scope="module")
def base_url(model_folder, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model_folder)]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture
def tracker(open_tracker):
    return open_tracker()


def test_a_foreign_server_is_asked_once(base_url, model_folder, tracker):
    def teacher() -> Teacher:
        return Teacher(
            AsyncTeacher(
                str(model_folder),
                store=tracker.responses,
                endpoint=Endpoint(base_url=base_url),
                parameters={"max_tokens": 6},
                keeps_truncated=True,
            )
        )

    with teacher() as first:
        answers = list(first.ask_all([QUESTION, "Hello", QUESTION]))
    with teacher() as second:
        again = second.ask(QUESTION)

    assert [answers[0].text, answers[0].text] == [answers[2].text, again.text]
    assert 2 == tracker.session.api_responses_saved
    assert {6} == {answer.usage.completion_tokens for answer in answers}


def test_the_official_clients_own_objects_are_messages(base_url, model_folder, tracker):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as official:
        said = official.chat.completions.create(model=str(model_folder), messages=QUESTION, max_tokens=6)
    history = [*QUESTION, said.choices[0].message, {"role": "user", "content": "And a set?"}]
    as_dicts = [*QUESTION, {"role": "assistant", "content": said.choices[0].message.content}, history[-1]]
    with Teacher(
        AsyncTeacher(
            str(model_folder),
            store=tracker.responses,
            endpoint=Endpoint(base_url=base_url),
            parameters={"max_tokens": 4},
            keeps_truncated=True,
        )
    ) as teacher:
        answer = teacher.ask(history)

        assert isinstance(said.choices[0].message, ChatCompletionMessage)
        assert answer.key == teacher.request(as_dicts).key
    assert ChatCompletionMessage.model_validate(answer.message).content == answer.text


def test_a_generation_job_runs_against_a_foreign_server(base_url, model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "Hi", "id": 7}}\n{json.dumps({"messages": QUESTION})}\n')
    arguments = ["--prompts", f"{tmp_path}/p.jsonl", "--model", str(model_folder), "--max-tokens", "5"]
    arguments += ["--out", f"{tmp_path}/d.jsonl", "--concurrency", "2", "--keep-truncated"]
    said = CliRunner().invoke(app, ["generate", *arguments])
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]

    assert 0 == said.exit_code, said.output
    assert [7, "assistant"] == [lines[0]["id"], lines[1]["messages"][-1]["role"]]
