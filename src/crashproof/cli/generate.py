"""Ask a teacher for answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crashproof.alerts.settings import AlertSettings, names_variable, read_address
from crashproof.answers.store import ResponseStore
from crashproof.cli.output import print_json
from crashproof.errors import ConfigError
from crashproof.formatting import as_dollars_text

if TYPE_CHECKING:
    from crashproof.records.requests import Spending
    from crashproof.teacher.client.prices import PriceTable
    from crashproof.teacher.jobs.generation import Engine, JobResult, TeacherSettings
    from crashproof.teacher.jobs.job import GenerationJob

__all__ = ["generate"]

EXIT_SOME_FAILED = 1
EXIT_OVER_BUDGET = 3
EXIT_STOPPED = 75

_SAID_OTHERWISE = {
    "model": "Pass --model.",
    "messages": "They stand in the file of prompts.",
    "tools": "They stand in the file of prompts.",
}


def generate(
    prompts: Annotated[Path, typer.Option(help="JSONL: a prompt, messages, or a batch-file line on each line.")],
    model: Annotated[str, typer.Option(help="The teacher's name at its API.")],
    out: Annotated[Path, typer.Option(help="Where the answers go, in the prompts' order.")],
    store: Annotated[
        str | None, typer.Option(help="Share answers with other processes: sqlite:///PATH, postgresql+psycopg://…")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="US dollars that this job may spend, such as 5.00.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once, at most.")] = 16,
    logprobs: Annotated[int | None, typer.Option(min=0, max=20, help="Top log-probabilities of each token.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 1,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of one answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of the sampling; the API's own if not given.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first sample; each further one has the next.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other one of the request, its value as JSON.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Of the API; else OPENAI_BASE_URL, else OpenAI's own.")] = None,
    prices: Annotated[Path | None, typer.Option(help="A price table in YAML, in place of the one inside.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="As the API allows.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Prompts and answers together.")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Tries of one request.")] = 8,
    answer_seconds: Annotated[float, typer.Option(min=0.001, help="The longest that one answer may take.")] = 3600.0,
    ask_again: Annotated[
        bool, typer.Option("--ask-again", help="Pay once more for answers that are kept and cannot be used.")
    ] = False,
    alert_webhook: Annotated[
        str | None, typer.Option(metavar="env:NAME", help="POST each alert to the address in that variable.")
    ] = None,
    alert_slack: Annotated[
        str | None, typer.Option(metavar="env:NAME", help="The same, as Slack's incoming webhooks take it.")
    ] = None,
    alert_command: Annotated[
        str | None, typer.Option(help="A line for the shell; it gets each alert as JSON on its input.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: on the Ray cluster that is running.")] = "local",
    write_batch: Annotated[
        Path | None, typer.Option(help="Ask nothing; write a batch file of the requests without an answer.")
    ] = None,
    read_batch: Annotated[
        list[Path] | None, typer.Option(help="Ask nothing; take a batch's results into the store.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end, for programs.")] = False,
) -> None:
    """Ask a teacher every prompt of a file, once, and keep every answer.

    Kill it and start the same command again: it goes on, and no answer is paid
    for twice. The key is read from OPENAI_API_KEY.

    Exit codes: 0 every prompt has its answer; 1 some have none, listed in
    OUT.failed.jsonl; 2 an error; 3 the budget is used up; 75 stopped by a
    signal, start it again.

    Example: crashproof generate --prompts P.jsonl --model gpt-4.1-mini
    --max-tokens 500 --budget 5.00 --out D.jsonl
    """
    from crashproof.teacher.client.endpoint import Endpoint
    from crashproof.teacher.client.limits import Limits
    from crashproof.teacher.client.prices import PriceTable
    from crashproof.teacher.client.request_builder import RequestForm
    from crashproof.teacher.client.retry import Patience
    from crashproof.teacher.jobs.generation import TeacherSettings
    from crashproof.teacher.jobs.job import GenerationJob

    asks_nothing = write_batch is not None or bool(read_batch)
    endpoint = Endpoint.of(os.environ, base_url=base_url, needs_key=not asks_nothing)
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if logprobs is not None:
        given |= {"logprobs": True, "top_logprobs": logprobs}
    parameters = {name: value for name, value in given.items() if value is not None} | _parsed(parameter or [])
    job = GenerationJob(
        prompts=prompts,
        out=out,
        form=RequestForm(base_url=endpoint.base_url, model=model, parameters=parameters),
        num_samples=samples,
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
        patience=Patience(attempts=attempts, answer_seconds=answer_seconds),
        asks_again=ask_again,
    )
    alerts = AlertSettings(
        webhook=_address(alert_webhook, "--alert-webhook"),
        slack_webhook=_address(alert_slack, "--alert-slack"),
        command=alert_command,
        budget_dollars=settings.budget,
    )
    chosen = _engine(engine, job, settings, store, write_batch, read_batch or [])
    _finish(_run(job, chosen, store, alerts), job, settings, write_batch, as_json=as_json)


def _engine(
    name: str,
    job: GenerationJob,
    settings: TeacherSettings,
    store: str | None,
    write_batch: Path | None,
    read_batch: list[Path],
) -> Callable[[Callable[[int, object], None]], Engine]:
    from crashproof.teacher.jobs.batch_engines import ReadBatchEngine, WriteBatchEngine
    from crashproof.teacher.jobs.generation import LocalEngine

    if write_batch is not None and read_batch:
        raise ConfigError("A batch is either written or read.", hint="Pass --write-batch or --read-batch.")
    if write_batch is not None:
        return lambda _: WriteBatchEngine(path=write_batch)
    if read_batch:
        return lambda _: ReadBatchEngine(paths=read_batch, prices=settings.prices)
    if name == "local":
        return lambda on_failure: LocalEngine(settings=settings, on_failure=on_failure)
    if name != "ray":
        raise ConfigError(f"There is no engine {name!r}.", hint="Pass --engine local or --engine ray.")
    if store is None:
        raise ConfigError(
            "On a Ray cluster the answers must be kept where all its machines reach them.", hint="Pass --store."
        )
    from crashproof.teacher.jobs.ray_engine import RayEngine
    from crashproof.teacher.shared_store.accounts import account_of

    account = account_of(job.folder)
    return lambda on_failure: RayEngine(settings=settings, store_url=store, account=account, on_failure=on_failure)


def _run(
    job: GenerationJob,
    engine: Callable[[Callable[[int, object], None]], Engine],
    store: str | None,
    alerts: AlertSettings,
) -> JobResult:
    from crashproof.teacher.jobs.display import show_job
    from crashproof.teacher.jobs.generation import run_job

    def open_shared(account: str) -> ResponseStore:
        from crashproof.teacher.shared_store.store import SharedStore

        assert store is not None
        return SharedStore.open(store, account=account)

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
        for line in _in_words(result, job, settings, write_batch):
            typer.echo(line, err=True)
    if result.asked.is_stopped:
        raise typer.Exit(0 if write_batch is not None else EXIT_STOPPED)
    if result.asked.over_budget is not None:
        raise typer.Exit(EXIT_OVER_BUDGET)
    if result.written is not None and result.written.num_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _summary(result: JobResult, job: GenerationJob) -> dict[str, Any]:
    spending = result.spending
    return {
        "prompts": str(job.prompts),
        "out": str(job.out),
        "run": str(job.folder.root),
        "answers_wanted": result.num_questions,
        "answers_written": result.written.num_answers if result.written else 0,
        "failed": result.written.num_failed if result.written else None,
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


def _in_words(
    result: JobResult, job: GenerationJob, settings: TeacherSettings, write_batch: Path | None
) -> list[str]:
    if write_batch is not None:
        return [f"{result.asked.note} Send it, then: crashproof generate … --read-batch RESULTS.jsonl"]
    if result.asked.is_stopped:
        first = f"Stopped: {result.spending.answers:,} answers are kept. Start the same command again."
    else:
        assert result.written is not None
        first = f"{result.written.num_answers:,} of {result.num_questions:,} answers are in {job.out}."
    lines = [f"{result.asked.note} {first}".strip()]
    if result.asked.over_budget is not None:
        lines.append("The budget is used up. Start the same command with a larger one to go on.")
    if result.written is not None and result.written.num_failed:
        lines.append(f"{result.written.num_failed:,} have none; {job.failed} says why.")
    return [*lines, _account(result.spending, job.form.model, settings.prices)]


def _account(spending: Spending, model: str, prices: PriceTable) -> str:
    from crashproof.teacher.client.prices import UNPRICED, price_of

    # Sums of 0 would say that it was free.
    is_unpriced = not spending.spent and price_of(model, prices) is UNPRICED
    if is_unpriced:
        paid = f"Bought: {spending.answers:,} answers, at a price that is not known for {model!r} (--prices)"
    else:
        paid = f"Paid: {as_dollars_text(spending.spent)} for {spending.answers:,} answers"
    if spending.answers_served:
        saved = "" if is_unpriced else f"{as_dollars_text(spending.saved)}, "
        paid += f"; saved by the store: {saved}{spending.answers_served:,} times"
    if spending.requests_in_doubt:
        most = "" if is_unpriced else f", at most {as_dollars_text(spending.in_doubt)}"
        paid += f"; in doubt: {spending.requests_in_doubt:,} requests{most}"
    if spending.spent_before:
        paid += f"; by earlier sessions of this job: {as_dollars_text(spending.spent_before)}"
    if spending.wasted:
        paid += f"; wasted: {as_dollars_text(spending.wasted)}"
    return f"{paid}."


def _parsed(parameters: list[str]) -> dict[str, Any]:
    parsed = {}
    for each in parameters:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise ConfigError(f"{each!r} is no parameter.", hint="Write --parameter NAME=VALUE.")
        if name in _SAID_OTHERWISE:
            raise ConfigError(f"--parameter cannot set {name}.", hint=_SAID_OTHERWISE[name])
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            parsed[name] = text
    return parsed


def _address(named: str | None, option: str) -> str | None:
    if named is None:
        return None
    if not names_variable(named):
        # The address is a secret, and the command line is for all to read.
        raise ConfigError(f"{option} is no env:NAME.", hint="Put the address into a variable, and name that.")
    return read_address(named, os.environ, where=option)


def _dollars(budget: str | None) -> Decimal | None:
    if budget is None:
        return None
    try:
        dollars = Decimal(budget.removeprefix("$"))
    except InvalidOperation:
        dollars = Decimal("NaN")
    if not dollars.is_finite() or dollars <= 0:
        raise ConfigError(f"The budget {budget!r} is no sum above 0.", hint="Such as --budget 5.00.")
    return dollars
