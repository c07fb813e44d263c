"""Generate answers with a teacher."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crashproof.alerts.settings import AlertSettings, names_variable, read_address
from crashproof.answers.store import ResponseStore
from crashproof.cli.alert_options import AlertCommand, AlertSlack, AlertWebhook, alert_address
from crashproof.cli.arguments import AsJson
from crashproof.cli.output import print_json
from crashproof.errors import ConfigError
from crashproof.formatting import as_dollars_text

if TYPE_CHECKING:
    from crashproof.records.requests import Spending
    from crashproof.teacher.client.prices import PriceTable
    from crashproof.teacher.jobs.engine import Engine, TeacherSettings
    from crashproof.teacher.jobs.generation import JobResult
    from crashproof.teacher.jobs.job import GenerationJob

    # Takes what to call with each failed request: its number of retries, and the error.
    _EngineFactory = Callable[[Callable[[int, object], None]], Engine]

__all__ = ["generate"]

EXIT_SOME_FAILED = 1
EXIT_OVER_BUDGET = 3
EXIT_STOPPED = 75

_SET_ELSEWHERE = {
    "model": "Pass --model.",
    "messages": "Put them into the prompts file.",
    "tools": "Put them into the prompts file.",
}


def generate(
    prompts: Annotated[Path, typer.Option(help="File or folder of prompts, messages, or batch-file lines.")],
    model: Annotated[str, typer.Option(help="Model name at the teacher's API.")],
    out: Annotated[Path, typer.Option(help="Output file for the answers, in the order of the prompts.")],
    store: Annotated[
        str | None, typer.Option(help="Shared answer store, such as sqlite:///PATH, or env:VAR.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Maximum cost of this job in US dollars, such as 5.00.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Maximum number of concurrent requests.")] = 16,
    logprobs: Annotated[int | None, typer.Option(min=0, max=20, help="Top log-probabilities per token.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers per prompt.")] = 1,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum tokens per completion.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Sampling temperature.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first sample; later ones count up from it.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Other parameter, as JSON.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="API base URL (default: OPENAI_BASE_URL, or OpenAI).")] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Request header; env:VAR as value for a secret.")
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option(metavar="NAME=env:VAR", help="Secret parameter of the address.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="Price table in YAML that replaces the built-in one.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Request rate limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Token rate limit, in and out.")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Maximum attempts per request, retries included.")] = 8,
    answer_seconds: Annotated[float, typer.Option(min=0.001, help="Timeout per attempt, in seconds.")] = 3600.0,
    first_byte_seconds: Annotated[
        float, typer.Option(min=0.001, help="Timeout until an answer's first byte, in seconds.")
    ] = 900.0,
    between_chunks_seconds: Annotated[
        float, typer.Option(min=0.001, help="Timeout between pieces of an answer, in seconds.")
    ] = 600.0,
    deadline_hours: Annotated[float, typer.Option(min=0.0001, help="Maximum hours for all attempts at one.")] = 2.0,
    ask_again: Annotated[bool, typer.Option("--ask-again", help="Pay again for unusable stored answers.")] = False,
    keep_truncated: Annotated[
        bool, typer.Option("--keep-truncated", help="Write answers that were cut off or filtered, too.")
    ] = False,
    alert_webhook: AlertWebhook = None,
    alert_slack: AlertSlack = None,
    alert_command: AlertCommand = None,
    engine: Annotated[str, typer.Option(help="Where to run: local, or ray for a running Ray cluster.")] = "local",
    write_batch: Annotated[Path | None, typer.Option(help="Write a batch file instead of sending requests.")] = None,
    read_batch: Annotated[list[Path] | None, typer.Option(help="Import the results of a batch.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send every prompt of a file to a teacher, once, and store every answer.

    After a kill, start the same command again: it continues, and no answer is
    paid for twice. The API key is read from OPENAI_API_KEY.

    Exit codes: 0 every prompt has an answer; 1 some have none, listed in
    OUT.failed.jsonl; 2 error; 3 the budget is used up; 75 stopped by a
    signal, start it again.

    Example: crashproof generate --prompts P.jsonl --model gpt-4.1-mini
    --max-tokens 500 --budget 5.00 --out D.jsonl
    """
    from crashproof.teacher.client.endpoint import Endpoint
    from crashproof.teacher.client.limits import Limits
    from crashproof.teacher.client.prices import PriceTable
    from crashproof.teacher.client.request_builder import RequestForm
    from crashproof.teacher.client.retry import RetryPolicy
    from crashproof.teacher.jobs.engine import TeacherSettings
    from crashproof.teacher.jobs.job import GenerationJob

    if store is not None and names_variable(store):
        store = read_address(store, os.environ, where="--store")
    sends_nothing = write_batch is not None or bool(read_batch)
    endpoint = Endpoint.of(
        os.environ,
        base_url=base_url,
        headers=_named(header or [], "--header"),
        query=_named(query or [], "--query"),
        needs_key=not sends_nothing,
    )
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if logprobs is not None:
        given |= {"logprobs": True, "top_logprobs": logprobs}
    parameters = {name: value for name, value in given.items() if value is not None} | _parse(parameter or [])
    job = GenerationJob(
        prompts=prompts,
        out=out,
        form=RequestForm(base_url=endpoint.base_url, model=model, parameters=parameters),
        num_samples=samples,
        keeps_truncated=keep_truncated,
    )
    settings = TeacherSettings(
        endpoint=endpoint,
        prices=PriceTable.load(prices),
        budget=_dollars(budget),
        limits=Limits(
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        ),
        retry_policy=RetryPolicy(
            attempts=attempts,
            answer_seconds=answer_seconds,
            first_byte_seconds=first_byte_seconds,
            between_chunks_seconds=between_chunks_seconds,
            deadline_seconds=deadline_hours * 3600,
        ),
        asks_again=ask_again,
    )
    alerts = AlertSettings(
        webhook=alert_address(alert_webhook, "--alert-webhook"),
        slack_webhook=alert_address(alert_slack, "--alert-slack"),
        command=alert_command,
        budget_dollars=settings.budget,
    )
    chosen = _choose_engine(engine, job, settings, store, write_batch, read_batch or [])
    _finish(_run(job, chosen, store, alerts), job, settings, write_batch, as_json=as_json)


def _choose_engine(
    name: str, job: GenerationJob, settings: TeacherSettings, store: str | None, write: Path | None, read: list[Path]
) -> _EngineFactory:
    from crashproof.teacher.jobs.batch_engines import ReadBatchEngine, WriteBatchEngine
    from crashproof.teacher.jobs.local_engine import LocalEngine

    if write is not None and read:
        raise ConfigError("--write-batch and --read-batch cannot be combined.", hint="Pass one of them.")
    if write is not None:
        return lambda _: WriteBatchEngine(path=write)
    if read:
        return lambda _: ReadBatchEngine(paths=read, prices=settings.prices)
    if name == "local":
        return lambda on_failure: LocalEngine(settings=settings, on_failure=on_failure)
    if name != "ray":
        raise ConfigError(f"Unknown engine {name!r}.", hint="Pass --engine local or --engine ray.")
    if store is None:
        raise ConfigError(
            "A job on a Ray cluster needs an answer store that all its machines can reach.", hint="Pass --store."
        )
    from crashproof.teacher.jobs.ray_engine import RayEngine
    from crashproof.teacher.shared_store.accounts import account_of

    account = account_of(job.folder)
    return lambda on_failure: RayEngine(settings=settings, store_url=store, account=account, on_failure=on_failure)


def _run(job: GenerationJob, engine: _EngineFactory, store: str | None, alerts: AlertSettings) -> JobResult:
    from crashproof.teacher.jobs.display import show_job
    from crashproof.teacher.jobs.generation import run_job

    def open_shared(account: str) -> ResponseStore:
        from crashproof.teacher.shared_store.store import SharedStore

        assert store is not None
        return SharedStore.open(store, account=account, run_lock=job.folder.lock)

    with show_job() as progress:
        return run_job(
            job, engine, progress=progress, shared_store=None if store is None else open_shared, alerts=alerts
        )


def _finish(
    result: JobResult, job: GenerationJob, settings: TeacherSettings, write_batch: Path | None, *, as_json: bool
) -> None:
    if as_json:
        print_json(_summary(result, job))
    else:
        for line in _result_lines(result, job, settings, write_batch):
            typer.echo(line, err=True)
    if result.asked.is_stopped:
        raise typer.Exit(0 if write_batch is not None else EXIT_STOPPED)
    if result.asked.over_budget is not None:
        raise typer.Exit(EXIT_OVER_BUDGET)
    if result.written is not None and result.written.num_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _summary(result: JobResult, job: GenerationJob) -> dict[str, object]:
    spending = result.spending
    return {
        "prompts": str(job.prompts),
        "out": str(job.out),
        "run": str(job.folder.root),
        "answers_wanted": result.num_questions,
        "answers_written": result.written.num_answers if result.written else 0,
        "failed": result.written.num_failed if result.written else None,
        "incomplete": dict(result.written.incomplete) if result.written else None,
        "is_stopped": result.asked.is_stopped,
        "is_over_budget": result.asked.over_budget is not None,
        "note": result.asked.note,
        "answers_bought": spending.answers,
        "answers_served": spending.answers_served,
        "answers_bad": spending.answers_bad,
        "requests_in_doubt": spending.requests_in_doubt,
        "cost": {
            "spent": str(spending.spent + spending.spent_before),
            "saved": str(spending.saved),
            "in_doubt": str(spending.in_doubt),
            "wasted": str(spending.wasted),
        },
    }


def _result_lines(
    result: JobResult, job: GenerationJob, settings: TeacherSettings, write_batch: Path | None
) -> list[str]:
    if write_batch is not None:
        return [f"{result.asked.note} Submit it, then run: crashproof generate … --read-batch RESULTS.jsonl"]
    if result.asked.is_stopped:
        first = f"Stopped: {result.spending.answers:,} answers are stored. Start the same command again."
    else:
        assert result.written is not None
        first = f"{result.written.num_answers:,} of {result.num_questions:,} answers are in {job.out}."
    lines = [f"{result.asked.note} {first}".strip()]
    if result.asked.is_stopped and job.paths.partial.exists():
        lines.append(f"The first of them, in the order of the prompts, are in {job.paths.partial}.")
    if result.asked.over_budget is not None:
        lines.append("The budget is used up. Start the same command with a larger one to continue.")
    if result.written is not None and result.written.num_failed:
        lines.append(f"{result.written.num_failed:,} have no answer: see {job.failed}.")
    if result.written is not None and result.written.incomplete:
        lines.append(_incomplete_line(result.written.incomplete, job))
    return [*lines, _account(result.spending, job.form.model, settings.prices)]


def _incomplete_line(incomplete: Mapping[str, int], job: GenerationJob) -> str:
    """How many answers are not known to be complete, and what became of them."""
    by_reason = ", ".join(f"{reason} {count:,}" for reason, count in sorted(incomplete.items()))
    found = f"{sum(incomplete.values()):,} answers are incomplete (finish_reason: {by_reason})"
    if job.keeps_truncated:
        return f"{found}: written as they are."
    return f"{found}: paid and kept, but not written. Pass --keep-truncated to use them, or raise --max-tokens."


def _account(spending: Spending, model: str, prices: PriceTable) -> str:
    from crashproof.teacher.client.prices import UNPRICED, price_of

    # Sums of 0 would mean that it was free.
    is_unpriced = not spending.spent and price_of(model, prices) is UNPRICED
    if is_unpriced:
        paid = (
            f"Paid: an unknown price for {spending.answers:,} answers, {model!r} is not in the price table (--prices)"
        )
    else:
        paid = f"Paid: {as_dollars_text(spending.spent)} for {spending.answers:,} answers"
    if spending.answers_served:
        saved = "" if is_unpriced else f" ({as_dollars_text(spending.saved)} saved)"
        paid += f"; reused from the store: {spending.answers_served:,} answers{saved}"
    if spending.requests_in_doubt:
        most = "" if is_unpriced or not spending.in_doubt else f", at most {as_dollars_text(spending.in_doubt)}"
        paid += f"; in doubt: {spending.requests_in_doubt:,} requests{most}"
    if spending.spent_before:
        paid += f"; earlier sessions of this job: {as_dollars_text(spending.spent_before)}"
    if spending.wasted:
        paid += f"; wasted: {as_dollars_text(spending.wasted)}"
    return f"{paid}."


def _parse(parameters: list[str]) -> dict[str, Any]:
    parsed = {}
    for each in parameters:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise ConfigError(f"{each!r} is not a parameter.", hint="Pass --parameter NAME=VALUE.")
        if name in _SET_ELSEWHERE:
            raise ConfigError(f"--parameter cannot set {name}.", hint=_SET_ELSEWHERE[name])
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            parsed[name] = text
    return parsed


def _named(pairs: list[str], option: str) -> dict[str, str]:
    named = {}
    for each in pairs:
        name, equals, value = each.partition("=")
        if not equals or not name:
            # What follows may be a secret.
            raise ConfigError(f"A value of {option} has no name.", hint=f"Pass {option} NAME=env:VAR.")
        named[name.strip()] = value
    return named


def _dollars(budget: str | None) -> Decimal | None:
    if budget is None:
        return None
    try:
        dollars = Decimal(budget.removeprefix("$"))
    except InvalidOperation:
        dollars = Decimal("NaN")
    if not dollars.is_finite() or dollars <= 0:
        raise ConfigError(f"The budget {budget!r} is not an amount above 0.", hint="Pass one, such as --budget 5.00.")
    return dollars
