"""`crashproof generate`, as its users call it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alert_receiver import PATH, AlertReceiver, eventually
from typer.testing import CliRunner

from crashproof.cli.app import app
from crashproof.errors import (
    ConfigError,
    CrashproofError,
    DataError,
    RequestError,
    StorageUnwritable,
    TeacherRefused,
    TeacherUnreachable,
    UnknownPrice,
)
from crashproof.reading.run_reader import RunReader
from crashproof.testing import Fault, Faults, TeacherServer
from crashproof.testing.teacher_server import FaultTimes
from crashproof.testing.teacher_server.http_stub import Connection, HttpThread, Request
from crashproof.testing.teacher_server.questions import error_response

KEY = "sk-crashproof-0123456789abcdef"
PRICES = (Decimal(20), Decimal(10), Decimal(120))
TABLE = """
as_of: 2026-01-01
models: {teacher: {input: 20, cached_input: 10, output: 120, batch_share: 0.5}}
"""
QUESTIONS = ["What is a keel?", "What is a mast?", "What is a keel?"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass
class Job:
    """A job of this test, in this process."""

    prompts: Path
    out: Path
    base_url: str
    key: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    @property
    def failed(self) -> Path:
        return self.out.with_suffix(".failed.jsonl")

    @property
    def run(self) -> Path:
        return self.out.with_suffix(".run")

    def invoke(self, *options: object, exit_code: int = 0, model: str = "teacher") -> str:
        """What it says on stdout and stderr together; `words` has it too."""
        given = ["--prompts", self.prompts, "--model", model, "--out", self.out, "--base-url", self.base_url]
        result = CliRunner().invoke(
            app,
            ["generate", *map(str, [*given, *options])],
            env={"OPENAI_API_KEY": self.key, "OPENAI_BASE_URL": None, **self.environment},
            catch_exceptions=False,
        )
        self.words.append(result.output)
        assert exit_code == result.exit_code, result.output
        return result.output

    def problems(self) -> list[str]:
        return RunReader.open(self.run).problems()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., TeacherServer]]:
    servers = []

    def start(*given: Any, **options: Any) -> TeacherServer:
        servers.append(TeacherServer(*given, prices=PRICES, **options).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__(None, None, None)


@pytest.fixture
def server(serve: Callable[..., TeacherServer]) -> TeacherServer:
    return serve(lambda body: f"You asked: {body['messages'][-1]['content']}")


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(TABLE)
    return path


@pytest.fixture
def job(tmp_path: Path, server: TeacherServer) -> Job:
    """Three questions, of which two differ."""
    prompts = write(tmp_path / "P.jsonl", *({"prompt": text, "id": number} for number, text in enumerate(QUESTIONS)))
    return Job(prompts=prompts, out=tmp_path / "D.jsonl", base_url=server.base_url)


def test_every_prompt_has_its_answer_in_order_and_equal_ones_are_asked_once(job: Job, server: TeacherServer) -> None:
    said = job.invoke()

    assert [
        {"prompt": text, "teacher_text": f"You asked: {text}", "finish_reason": "stop", "id": number}
        for number, text in enumerate(QUESTIONS)
    ] == lines_of(job.out)
    assert (2, False) == (server.counts.answers_computed, job.failed.exists())
    assert f"3 of 3 answers are in {job.out}." in said
    assert [] == job.problems()


def test_a_finished_job_started_again_sends_nothing_and_writes_the_same_bytes(
    job: Job, server: TeacherServer
) -> None:
    job.invoke()
    content = job.out.read_bytes()

    job.invoke()

    assert content == job.out.read_bytes()
    assert 2 == server.counts.requests


def test_added_prompts_alone_are_asked_and_those_taken_out_are_left_out(job: Job, server: TeacherServer) -> None:
    job.invoke()
    write(job.prompts, {"prompt": "What is a mast?"}, {"prompt": "What is a reef?"})

    job.invoke()

    assert ["What is a mast?", "What is a reef?"] == [line["prompt"] for line in lines_of(job.out)]
    assert 3 == server.counts.requests
    assert 1 == len(RunReader.open(job.run).session().attempts[0:1])


def test_another_model_begins_a_new_session_and_the_old_answers_stay(
    job: Job, serve: Callable[..., TeacherServer]
) -> None:
    both = serve(lambda body: f"{body['model']} speaks", models=("teacher", "other"))
    job.base_url = both.base_url
    job.invoke()
    first = RunReader.open(job.run).session().session_id

    job.invoke(model="other")
    job.invoke(model="teacher")

    assert ["teacher speaks"] * 3 == [line["teacher_text"] for line in lines_of(job.out)]
    assert 4 == both.counts.requests
    assert (job.run / "progress" / "archive" / first).is_dir()


def test_messages_tools_and_extra_fields_are_carried_through(job: Job, serve: Callable[..., TeacherServer]) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kiel"}'}}
    job.base_url = serve(lambda body: {"content": None, "tool_calls": [call]}).base_url
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it windy in Kiel?"}]
    write(job.prompts, {"messages": asked, "tools": [WEATHER], "source": {"page": 3}, "key": "mine"})

    job.invoke()

    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    wanted = {"messages": [*asked, answer], "tools": [WEATHER], "finish_reason": "tool_calls"}
    wanted |= {"source": {"page": 3}, "key": "mine"}
    assert [wanted] == lines_of(job.out)


def test_the_official_clients_message_dicts_are_understood(job: Job, server: TeacherServer) -> None:
    from openai.types.chat import ChatCompletionSystemMessageParam, ChatCompletionUserMessageParam

    messages = [
        ChatCompletionSystemMessageParam(role="system", content="Be brief."),
        ChatCompletionUserMessageParam(role="user", content=[{"type": "text", "text": "What is a keel?"}]),
    ]
    write(job.prompts, {"messages": messages})

    job.invoke()

    assert messages == list(server.requests_seen[0].body["messages"])
    assert [*messages, {"role": "assistant", "content": lines_of(job.out)[0]["messages"][-1]["content"]}] == (
        lines_of(job.out)[0]["messages"]
    )


def test_samples_have_a_number_and_a_seed_of_their_own(job: Job, server: TeacherServer) -> None:
    job.invoke("--samples", 3, "--seed", 40)

    assert [0, 1, 2] * 3 == [line["sample"] for line in lines_of(job.out)]
    assert [40, 40, 41, 41, 42, 42] == sorted(seen.body["seed"] for seen in server.requests_seen)


def test_samples_without_a_seed_are_answers_of_their_own(job: Job, server: TeacherServer) -> None:
    job.invoke("--samples", 2, "--temperature", 1)

    assert (6, 4) == (len(lines_of(job.out)), server.counts.answers_computed)
    assert 4 == len(server.counts.idempotency_keys)


def test_logprobs_are_asked_for_and_written(job: Job, server: TeacherServer) -> None:
    job.invoke("--logprobs", 5)

    (seen, _) = server.requests_seen
    assert (True, 5) == (seen.body["logprobs"], seen.body["top_logprobs"])
    for line in lines_of(job.out):
        assert line["teacher_text"] == "".join(token["token"] for token in line["logprobs"])
        assert all(1 <= len(token["top_logprobs"]) <= 5 for token in line["logprobs"])


def test_any_parameter_can_be_set_as_json_or_as_text(job: Job, server: TeacherServer) -> None:
    job.invoke("--parameter", "top_p=0.5", "--parameter", 'stop=["x"]', "--parameter", "reasoning_effort=low")

    body = server.requests_seen[0].body
    assert (0.5, ["x"], "low") == (body["top_p"], body["stop"], body["reasoning_effort"])


def test_lines_of_a_batch_file_are_asked_with_their_own_parameters(job: Job, server: TeacherServer) -> None:
    body = {"model": "teacher", "messages": [{"role": "user", "content": "What is a keel?"}], "temperature": 0.25}
    write(
        job.prompts,
        {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"prompt": "What is a mast?"},
    )

    job.invoke("--temperature", 1)

    assert {0.25, 1} == {seen.body["temperature"] for seen in server.requests_seen}
    assert "one" == lines_of(job.out)[0]["custom_id"]


def test_json_is_one_object_for_programs(job: Job, prices: Path) -> None:
    told = json.loads(job.invoke("--json", "--prices", prices))

    assert (3, 3, 0, 2) == (
        told["answers_wanted"],
        told["answers_written"],
        told["failed"],
        told["answers_bought"],
    )
    assert {str(job.run), str(job.out)} == {told["run"], told["out"]}
    assert Decimal(told["cost"]["spent"]) > 0


def test_what_was_paid_is_told_by_the_servers_own_count(job: Job, server: TeacherServer, prices: Path) -> None:
    told = json.loads(job.invoke("--json", "--prices", prices))

    assert server.counts.dollars == Decimal(told["cost"]["spent"])


def test_a_price_that_is_not_known_is_not_called_free(job: Job) -> None:
    said = job.invoke()

    assert "Paid: an unknown price for 2 answers, 'teacher' is not in the price table (--prices)" in said
    assert "$" not in said


def test_an_unusable_answer_is_listed_with_its_reason_and_not_requested_again(
    job: Job, serve: Callable[..., TeacherServer]
) -> None:
    strange = serve(lambda body: "" if "mast" in body["messages"][0]["content"] else "It is.")
    job.base_url = strange.base_url

    said = [job.invoke(exit_code=1) for _ in range(2)]

    failed = lines_of(job.failed)
    assert [(2, "What is a mast?", 1)] == [(line["line"], line["prompt"], line["id"]) for line in failed]
    assert "it is empty" in failed[0]["reason"]
    assert ["What is a keel?"] * 2 == [line["prompt"] for line in lines_of(job.out)]
    assert all(f"1 have no answer: see {job.failed}." in each for each in said)
    assert 2 == strange.counts.requests


def test_ask_again_requests_unusable_answers_again(job: Job, serve: Callable[..., TeacherServer]) -> None:
    said = iter(["", "It is.", "It is.", "It is."])
    strange = serve(lambda body: next(said))
    job.base_url = strange.base_url
    job.invoke("--concurrency", 1, exit_code=1)

    job.invoke("--ask-again")

    assert (3, False) == (strange.counts.requests, job.failed.exists())
    assert 3 == len(lines_of(job.out))
    assert [] == job.problems()


def test_broken_json_is_kept_marked_and_not_bought_again(job: Job, serve: Callable[..., TeacherServer]) -> None:
    broken = serve(faults=Faults(script=[Fault.BROKEN_JSON]))
    job.base_url = broken.base_url

    for _ in range(2):
        job.invoke("--concurrency", 1, exit_code=1)

    assert ["the answer is stored but unusable: its body is not a JSON object"] * 2 == [
        line["reason"] for line in lines_of(job.failed)
    ]
    assert (2, 2) == (broken.counts.requests, broken.counts.answers_computed)
    assert 1 == RunReader.open(job.run).session().api_responses_bad


def test_fields_of_a_prompt_do_not_hide_why_it_has_no_answer(job: Job, serve: Callable[..., TeacherServer]) -> None:
    job.base_url = serve(lambda body: "").base_url
    write(job.prompts, {"prompt": "What is a keel?", "reason": "of mine", "line": "ten"})

    job.invoke(exit_code=1)

    (failed,) = lines_of(job.failed)
    assert (1, True) == (failed["line"], "it is empty" in failed["reason"])


def test_a_refused_prompt_does_not_stop_the_others(job: Job, serve: Callable[..., TeacherServer]) -> None:
    job.base_url = serve().base_url
    write(job.prompts, {"prompt": "What is a keel?"}, *batch_lines({"max_tokens": -1}))

    job.invoke(exit_code=1)

    assert ["What is a keel?"] == [line["prompt"] for line in lines_of(job.out)]
    assert "HTTP 400: 'max_tokens' is a whole number" in lines_of(job.failed)[0]["reason"]


def batch_lines(*bodies: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": "What is a reef?"}]
    return [
        {
            "custom_id": f"line {number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": messages, **body},
        }
        for number, body in enumerate(bodies)
    ]


# Errors before anything is sent.


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "it is not valid JSON"),
        ('{"text": "x"}', 'it has neither "prompt" nor "messages"'),
        ('{"prompt": ""}', '"prompt" must be a non-empty string'),
        ('{"prompt": "x", "teacher_text": "y"}', "rename that field"),
        (json.dumps(batch_lines({"model": "other"})[0]), "its model is 'other', the job's is 'teacher'"),
        (json.dumps(batch_lines({"stream": True})[0]), '"stream" is set'),
        (json.dumps(batch_lines({"n": 2})[0]), "--samples"),
    ],
    ids=["no JSON", "no prompt", "empty", "taken name", "other model", "streamed", "several at once"],
)
def test_a_malformed_prompt_names_its_file_and_line_and_nothing_is_sent(
    job: Job, server: TeacherServer, line: str, words: str
) -> None:
    with job.prompts.open("a") as file:
        file.write(f"{line}\n")

    with pytest.raises(DataError) as told:
        job.invoke()

    assert str(told.value).startswith(f"{job.prompts}, line 4: ")
    assert words in str(told.value)
    assert (0, False) == (server.counts.requests, job.run.exists())


@pytest.mark.parametrize(
    "options, error, words",
    [
        (["--budget", "1"], UnknownPrice, "has no price for the model 'teacher'"),
        (["--budget", "much"], ConfigError, "The budget 'much' is not an amount above 0"),
        (["--budget", "-1"], ConfigError, "is not an amount above 0"),
        (["--budget", "NaN"], ConfigError, "is not an amount above 0"),
        (["--parameter", "top_p"], ConfigError, "'top_p' is not a parameter"),
        (["--parameter", "model=other"], ConfigError, "Pass --model."),
        (["--parameter", "messages=[]"], ConfigError, "Put them into the prompts file."),
        (["--parameter", "tools=[]"], ConfigError, "Put them into the prompts file."),
        (["--parameter", "stream=true"], ConfigError, '"stream" is set, but answers are stored complete'),
        (["--parameter", "n=2"], ConfigError, "--samples"),
        (["--parameter", "top_p=NaN"], RequestError, "top_p is nan, which JSON cannot represent"),
        (["--prices", "/none.yaml"], ConfigError, "The price table /none.yaml cannot be read"),
        (["--engine", "cloud"], ConfigError, "Pass --engine local or --engine ray"),
        (["--engine", "ray"], ConfigError, "Pass --store"),
        (["--base-url", "ftp://x"], RequestError, "is not an HTTP URL"),
        (["--base-url", "http://user:word@x"], RequestError, "contains a user name or password"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_option_is_an_error_and_nothing_is_sent(
    job: Job, server: TeacherServer, options: list[str], error: type[CrashproofError], words: str
) -> None:
    with pytest.raises(error, match=r".+") as told:
        job.invoke(*options)

    assert words in str(told.value)
    assert 0 == server.counts.requests


def test_a_budget_needs_a_bound_for_the_answer(job: Job, server: TeacherServer, prices: Path) -> None:
    with pytest.raises(ConfigError, match=r"it sets no maximum length\. Set max_tokens\."):
        job.invoke("--budget", "1", "--prices", prices)

    assert 0 == server.counts.requests


def test_a_missing_key_is_told_before_anything_is_made(job: Job) -> None:
    job.base_url = "https://api.openai.com/v1"

    with pytest.raises(ConfigError, match=r"No API key is set\. Set OPENAI_API_KEY"):
        job.invoke()

    assert not job.run.exists()


def test_an_output_that_is_a_folder_is_refused(job: Job, tmp_path: Path) -> None:
    job.out = tmp_path

    with pytest.raises(ConfigError, match=r"is a folder\. Pass a file as --out\."):
        job.invoke()


def test_an_output_in_a_folder_that_is_not_there_yet_is_written(job: Job, tmp_path: Path) -> None:
    job.out = tmp_path / "some" / "where" / "D.jsonl"

    job.invoke()

    assert 3 == len(lines_of(job.out))


def test_an_output_below_a_file_is_refused(job: Job, server: TeacherServer) -> None:
    job.out = job.prompts / "D.jsonl"

    with pytest.raises(StorageUnwritable, match=r"Choose another output folder"):
        job.invoke()

    assert 0 == server.counts.requests


def test_prompts_from_a_pipe_are_refused_since_they_are_read_again(job: Job, tmp_path: Path) -> None:
    job.prompts = tmp_path / "pipe"
    os.mkfifo(job.prompts)

    with pytest.raises(ConfigError, match=r"is a pipe, but prompts are read several times\. Write them to a file\."):
        job.invoke()


def test_a_job_does_not_write_over_its_own_prompts(job: Job, server: TeacherServer) -> None:
    content = job.prompts.read_bytes()

    for out, prompts in ((job.prompts, job.prompts), (job.out, job.failed)):
        prompts.write_bytes(content)
        with pytest.raises(ConfigError, match="would overwrite its own prompts"):
            Job(prompts=prompts, out=out, base_url=job.base_url).invoke()

    assert (0, content) == (server.counts.requests, job.prompts.read_bytes())


@pytest.mark.parametrize("name", ["E.run", "D.json", "D.v1"])
def test_an_output_of_any_name_has_a_run_of_its_own(job: Job, server: TeacherServer, name: str) -> None:
    job.invoke()
    job.out = job.out.with_name(name)

    job.invoke()

    assert 4 == server.counts.requests
    assert 3 == len(lines_of(job.out))
    assert (job.out.parent / f"{name}.run" / "progress").is_dir()


# Unreachable and refusing teachers.


def test_an_unreachable_server_is_an_error_also_for_a_few_prompts(job: Job) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    job.base_url = f"http://127.0.0.1:{port}/v1"

    with pytest.raises(TeacherUnreachable, match=r"no response after 2 attempts over .* no connection to http"):
        job.invoke("--attempts", 2)

    session = RunReader.open(job.run).session()
    assert (0, True) == (len(session.api_requests_open), session.connection_failures >= 2)
    assert not job.out.exists()


def test_a_server_that_goes_away_leaves_what_came_before(job: Job, serve: Callable[..., TeacherServer]) -> None:
    gone = serve(faults=Faults(script=[None, *[Fault.DROP_BEFORE] * 99]))
    job.base_url = gone.base_url

    job.invoke("--concurrency", 1, "--attempts", 2, exit_code=1)

    assert ["What is a keel?"] * 2 == [line["prompt"] for line in lines_of(job.out)]
    assert "no response after 2 attempts" in lines_of(job.failed)[0]["reason"]


def test_a_long_job_stops_when_the_server_is_gone(job: Job, serve: Callable[..., TeacherServer]) -> None:
    gone = serve(faults=Faults(script=[None, *[Fault.DROP_BEFORE] * 999]))
    job.base_url = gone.base_url
    write(job.prompts, *({"prompt": f"Question {number}"} for number in range(100)))

    with pytest.raises(TeacherUnreachable):
        job.invoke("--concurrency", 4, "--attempts", 1)

    assert gone.counts.requests < 40


def test_answers_that_are_there_already_do_not_hide_that_the_server_is_gone(
    job: Job, serve: Callable[..., TeacherServer]
) -> None:
    gone = serve(faults=Faults(script=[*[None] * 50, *[Fault.DROP_BEFORE] * 999]))
    job.base_url = gone.base_url
    write(job.prompts, *({"prompt": f"Question {number}"} for number in range(50)))
    job.invoke()
    write(job.prompts, *({"prompt": f"{kind} {number}"} for number in range(50) for kind in ("Question", "Riddle")))

    with pytest.raises(TeacherUnreachable):
        job.invoke("--concurrency", 4, "--attempts", 1)

    assert gone.counts.requests < 90


def test_a_model_that_is_not_there_stops_the_job_at_once(job: Job, server: TeacherServer) -> None:
    with pytest.raises(TeacherRefused) as told:
        job.invoke("--concurrency", 1, model="nobody")

    reason = "HTTP 404: The model 'nobody' does not exist or you do not have access to it."
    hint = "Check the model name and the base URL."
    assert f"{server.base_url} refused the request: {reason} {hint}" == str(told.value)
    assert 1 == server.counts.requests


def test_a_wrong_key_stops_the_job_and_stands_nowhere(job: Job, serve: Callable[..., TeacherServer]) -> None:
    strict = serve(api_key="sk-the-right-one")
    job.base_url, job.key = strict.base_url, KEY

    with pytest.raises(TeacherRefused) as told:
        job.invoke("--concurrency", 1)

    assert str(told.value).endswith("Incorrect API key provided. Check OPENAI_API_KEY.")
    assert [] == places_of(KEY, job, str(told.value))


def test_the_right_key_stands_nowhere_either(job: Job, serve: Callable[..., TeacherServer]) -> None:
    passing = [fault for fault in Fault if not fault.is_lasting]
    strict = serve(api_key=KEY, faults=Faults(script=passing, times=FaultTimes(stall_seconds=0.01)))
    job.base_url, job.key = strict.base_url, KEY
    write(job.prompts, *({"prompt": f"Question {number}"} for number in range(len(passing))))

    job.invoke("--concurrency", len(passing), exit_code=1)

    assert set(passing) == set(strict.counts.faults)
    assert [] == places_of(KEY, job)


def places_of(secret: str, job: Job, *words: str) -> list[str]:
    """Where it can be read."""
    files = [path for path in job.out.parent.rglob("*") if path.is_file()]
    said = [text for text in (*job.words, *words) if secret in text]
    return said + [str(path) for path in files if secret.encode() in path.read_bytes()]


def test_an_account_without_money_stops_the_job_at_once(job: Job) -> None:
    num_asked = 0

    async def refuse(request: Request, connection: Connection) -> None:
        nonlocal num_asked
        num_asked += 1
        await connection.send(error_response(429, "You exceeded your current quota.", code="insufficient_quota"))

    thread = HttpThread(refuse, lambda error: error_response(error.status, str(error)), port=0)
    job.base_url = f"http://127.0.0.1:{thread.port}/v1"
    try:
        with pytest.raises(TeacherRefused, match="You exceeded your current quota"):
            job.invoke("--concurrency", 1)
    finally:
        thread.close()

    assert 1 == num_asked


def test_a_budget_that_is_used_up_is_an_exit_code_of_its_own(job: Job, server: TeacherServer, prices: Path) -> None:
    options = ("--prices", prices, "--max-tokens", 5, "--keep-truncated", "--concurrency", 1)

    said = job.invoke("--budget", "0.0042", *options, exit_code=3)

    assert "The budget is used up." in said
    assert ["What is a keel?"] * 2 == [line["prompt"] for line in lines_of(job.out)]
    assert "The budget of $0.0042 does not allow" in lines_of(job.failed)[0]["reason"]
    assert server.counts.dollars <= Decimal("0.0042")
    assert "3 of 3 answers" in job.invoke("--budget", "1", *options)
    assert not job.failed.exists()


def test_requests_over_budget_do_not_count_as_completed(job: Job, prices: Path) -> None:
    options = ("--prices", prices, "--max-tokens", 5, "--keep-truncated", "--concurrency", 1)

    job.invoke("--budget", "0.0042", *options, exit_code=3)
    over = RunReader.open(job.run).session()
    job.invoke("--budget", "1", *options)
    after = RunReader.open(job.run).session()

    assert (2, 3) == (over.steps_completed, over.total_steps_target)
    assert "BudgetExhausted: The budget of $0.0042 does not allow" in str(over.attempts[0].error)
    assert ("completed", None, 3) == (after.attempts[1].how, after.attempts[1].error, after.steps_completed)


def test_status_watch_and_doctor_count_the_requests_of_a_job(job: Job, prices: Path) -> None:
    job.invoke(
        "--budget",
        "0.0042",
        "--prices",
        prices,
        "--max-tokens",
        5,
        "--keep-truncated",
        "--concurrency",
        1,
        exit_code=3,
    )

    said = CliRunner().invoke(app, ["status", str(job.run)])
    watched = CliRunner().invoke(app, ["watch", str(job.run)])
    doctored = CliRunner().invoke(app, ["doctor", str(job.run), "--out", str(job.out.with_suffix(".html"))])

    assert [6, 6, 0] == [each.exit_code for each in (said, watched, doctored)]
    assert "ended early: BudgetExhausted: The budget of $0.0042 does not allow" in said.output
    assert "2 of 3 requests completed (66.7 %), last activity " in said.output
    assert "request 2 of 3" in watched.output
    assert "at request 2 of 3" in doctored.output
    assert "requests the answers that are missing" in doctored.output


# Alerts.


def test_a_used_up_budget_and_completion_raise_alerts(job: Job, prices: Path) -> None:
    options = (
        "--prices",
        prices,
        "--max-tokens",
        5,
        "--keep-truncated",
        "--concurrency",
        1,
        "--alert-webhook",
        "env:HOOK",
    )
    with AlertReceiver() as receiver:
        job.environment["HOOK"] = receiver.address
        job.invoke("--budget", "0.0042", *options, exit_code=3)
        receiver.wait_for(1)
        job.invoke("--budget", "1", *options)
        receiver.wait_for(2)

    assert ["budget_100", "complete"] == [content["kind"] for _, content in receiver.received]
    assert "The budget of $0.0042 does not allow" in receiver.received[0][1]["message"]
    assert PATH not in "".join(path.read_text(errors="replace") for path in job.run.rglob("*") if path.is_file())
    assert PATH not in "".join(job.words)


def test_slack_and_a_command_receive_alerts(job: Job, tmp_path: Path) -> None:
    with AlertReceiver() as receiver:
        job.environment["SLACK"] = receiver.address
        job.invoke("--alert-slack", "env:SLACK", "--alert-command", f"cat > {tmp_path}/told.json")
        receiver.wait_for(1)
        eventually(lambda: (tmp_path / "told.json").exists() and (tmp_path / "told.json").read_text().endswith("}"))

    assert {"text"} == receiver.received[0][1].keys()
    assert "complete" == json.loads((tmp_path / "told.json").read_text())["kind"]


@pytest.mark.parametrize(
    "named, words",
    [
        pytest.param("http://127.0.0.1/secret", "--alert-webhook is not env:NAME", id="the-address-itself"),
        pytest.param("env:HOOK", "--alert-webhook is env:HOOK, and HOOK is not set", id="not-set"),
        pytest.param("env:", "--alert-webhook is env:, and that variable is not set", id="no-name"),
    ],
)
def test_an_address_that_is_not_in_the_environment_is_refused(
    job: Job, server: TeacherServer, named: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        job.invoke("--alert-webhook", named)

    assert "secret" not in str(refused.value)
    assert 0 == server.counts.requests
    assert not job.run.exists()


# Batches.


def results_of(batch: Path, server: TeacherServer, path: Path, *, reverse: bool = True) -> Path:
    """What a provider makes of a batch file: results in any order."""
    import urllib.request

    results = []
    for line in lines_of(batch):
        request = urllib.request.Request(
            server.base_url.removesuffix("/v1") + line["url"],
            json.dumps(line["body"]).encode(),
            method=line["method"],
        )
        with urllib.request.urlopen(request) as reply:
            body = json.loads(reply.read())
        response = {"status_code": 200, "request_id": "req", "body": body}
        results.append({"id": "batch_req", "custom_id": line["custom_id"], "response": response, "error": None})
    return write(path, *(reversed(results) if reverse else results))


def test_a_batch_fills_the_same_store_at_its_own_price(
    job: Job, server: TeacherServer, prices: Path, tmp_path: Path
) -> None:
    batch = tmp_path / "B.jsonl"
    said = job.invoke("--write-batch", batch, "--prices", prices)
    assert f"2 requests are in {batch}." in said
    results = results_of(batch, server, tmp_path / "R.jsonl")

    told = json.loads(job.invoke("--read-batch", results, "--prices", prices, "--json"))

    assert server.counts.dollars / 2 == Decimal(told["cost"]["spent"])
    assert QUESTIONS == [line["prompt"] for line in lines_of(job.out)]
    assert [f"You asked: {text}" for text in QUESTIONS] == [line["teacher_text"] for line in lines_of(job.out)]
    job.invoke()
    assert 2 == server.counts.requests
    assert [] == job.problems()


def test_a_batch_holds_what_has_no_answer_yet(job: Job, tmp_path: Path) -> None:
    job.invoke()
    write(job.prompts, {"prompt": "What is a keel?"}, {"prompt": "What is a reef?"})

    job.invoke("--write-batch", tmp_path / "B.jsonl")

    (line,) = lines_of(tmp_path / "B.jsonl")
    assert [{"role": "user", "content": "What is a reef?"}] == line["body"]["messages"]
    assert ("POST", "/v1/chat/completions", 64) == (line["method"], line["url"], len(line["custom_id"]))


def test_a_batch_read_twice_is_paid_once(job: Job, server: TeacherServer, prices: Path, tmp_path: Path) -> None:
    job.invoke("--write-batch", tmp_path / "B.jsonl")
    results = results_of(tmp_path / "B.jsonl", server, tmp_path / "R.jsonl")

    told = [json.loads(job.invoke("--read-batch", results, "--prices", prices, "--json")) for _ in range(2)]

    assert told[0]["cost"]["spent"] == told[1]["cost"]["spent"]
    assert [2, 2] == [each["answers_bought"] for each in told]


def test_a_result_of_another_job_is_refused_by_its_line_and_nothing_is_taken(
    job: Job, server: TeacherServer, tmp_path: Path
) -> None:
    job.invoke("--write-batch", tmp_path / "B.jsonl")
    results = results_of(tmp_path / "B.jsonl", server, tmp_path / "R.jsonl")
    lines = lines_of(results)
    write(results, lines[0], lines[1] | {"custom_id": "nobody's"})

    with pytest.raises(DataError, match=r"R\.jsonl, line 2: its custom_id \"nobody's\" does not belong to this job"):
        job.invoke("--read-batch", results)

    assert 0 == RunReader.open(job.run).session().api_responses_saved


def test_what_a_batch_could_not_answer_is_listed_with_its_reason_and_asked_later(
    job: Job, server: TeacherServer, tmp_path: Path
) -> None:
    job.invoke("--write-batch", tmp_path / "B.jsonl")
    results = results_of(tmp_path / "B.jsonl", server, tmp_path / "R.jsonl", reverse=False)
    good, bad = lines_of(results)
    bad |= {"response": None, "error": {"code": "batch_expired", "message": "It came too late."}}
    write(results, good, bad)

    job.invoke("--read-batch", results, exit_code=1)

    (failed,) = lines_of(job.failed)
    assert "the batch reports: batch_expired: It came too late." == failed["reason"]
    job.invoke()
    assert (3, False) == (server.counts.requests, job.failed.exists())


def test_results_to_a_batch_file_of_ones_own_are_known_by_its_names(
    job: Job, server: TeacherServer, tmp_path: Path
) -> None:
    write(job.prompts, *batch_lines({"model": "teacher"}))
    results = results_of(job.prompts, server, tmp_path / "R.jsonl")

    job.invoke("--read-batch", results)

    assert ["line 0"] == [line["custom_id"] for line in lines_of(job.out)]


def test_a_batch_is_not_written_over_prompts_or_answers(job: Job) -> None:
    job.invoke()
    contents = [path.read_bytes() for path in (job.prompts, job.out)]

    for path in (job.prompts, job.out):
        with pytest.raises(ConfigError, match=r"The batch would overwrite .* Choose another file for it\."):
            job.invoke("--write-batch", path)

    assert contents == [path.read_bytes() for path in (job.prompts, job.out)]


def test_a_batch_is_written_into_a_folder_that_is_not_there_yet(job: Job, tmp_path: Path) -> None:
    batch = tmp_path / "to" / "send" / "B.jsonl"

    told = json.loads(job.invoke("--write-batch", batch, "--json"))

    assert 2 == len(lines_of(batch))
    assert f"2 requests are in {batch}." == told["note"]


def test_a_batch_is_either_written_or_read(job: Job, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--write-batch and --read-batch cannot be combined"):
        job.invoke("--write-batch", tmp_path / "B.jsonl", "--read-batch", job.prompts)


def test_nothing_is_left_for_a_batch_once_all_is_answered(job: Job, tmp_path: Path) -> None:
    job.invoke()

    said = job.invoke("--write-batch", tmp_path / "B.jsonl")

    assert "0 requests are in no file, since every prompt has an answer." in said
    assert not (tmp_path / "B.jsonl").exists()
