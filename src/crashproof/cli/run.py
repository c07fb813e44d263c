"""Supervise a training command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from crashproof.alerts.settings import AlertSettings
from crashproof.cli.alert_options import AlertCommand, AlertSlack, AlertWebhook, alert_address
from crashproof.cli.arguments import AsJson
from crashproof.cli.output import clean, print_json_line
from crashproof.clock import SYSTEM_CLOCK
from crashproof.errors import ConfigError
from crashproof.records.supervision import Phase
from crashproof.rules.supervision.backoff import Backoff
from crashproof.rules.supervision.progress_limits import ProgressLimits
from crashproof.rules.supervision.restarts import RestartRules

__all__ = ["run"]

_AUTO = "auto"


def run(
    command: Annotated[list[str], typer.Argument(help="The command with its arguments, behind `--`.")],
    run_folder: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="The run's output folder (default: its tracker tells)."),
    ] = None,
    patience: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PHASE=]auto|SECONDS", help="Longest time without progress, while training or in PHASE."
        ),
    ] = None,
    grace: Annotated[float, typer.Option(min=0.0, help="Seconds between a request to stop and SIGKILL.")] = 30.0,
    max_restarts: Annotated[int, typer.Option(min=0, help="Restarts in a row without a newer checkpoint.")] = 5,
    same_failures: Annotated[int, typer.Option(min=2, help="Equal failures at one step in a row.")] = 3,
    restart_on: Annotated[
        str, typer.Option(metavar="CODES", help="Exit codes that restart, such as 1,75; all: all but 0, 2, 126, 127.")
    ] = "all",
    backoff: Annotated[float, typer.Option(min=0.0, help="Seconds before the first restart; then doubled.")] = 2.0,
    notices: Annotated[
        str, typer.Option(metavar="CLOUD[=ADDRESS]", help="Notices of preemption: auto, off, aws or gcp.")
    ] = "auto",
    notices_every: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks for a notice.")] = 5.0,
    watch_file: Annotated[list[Path] | None, typer.Option(help="File whose growth is progress.")] = None,
    alert_webhook: AlertWebhook = None,
    alert_slack: AlertSlack = None,
    alert_command: AlertCommand = None,
    as_json: AsJson = False,
) -> None:
    """Run a training command, restart it when it fails or hangs, and record in its run what happened.

    Works with any command, also below torchrun or srun and as process 1 of a
    container. A signal to stop (SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2) is
    passed on. PHASE is starting, compiling, training, saving, evaluating,
    waiting or finishing.

    Exit codes: 0 the command ended well and its run is complete; 2 error;
    3 gave up: a limit of restarts was reached; 4 the command ended with 0
    before the run's last step; 75 asked to stop, start it again; else the last
    code of the command, or 128 and the number of the signal that ended it.

    Example: crashproof run -- python train.py --output-dir runs/one
    """
    from crashproof.supervisor.child import adopt_orphans
    from crashproof.supervisor.metadata import MetadataPoller, provider_named
    from crashproof.supervisor.settings import SupervisorSettings
    from crashproof.supervisor.signals import ReceivedSignals
    from crashproof.supervisor.state import claim_folder
    from crashproof.supervisor.supervise import Supervisor

    settings = SupervisorSettings(
        command=tuple(command),
        run=run_folder,
        watch_files=tuple(watch_file or ()),
        progress_limits=_progress_limits(patience or []),
        grace_seconds=grace,
        rules=RestartRules(max_restarts=max_restarts, same_failures=same_failures, codes=_codes(restart_on)),
        backoff=Backoff(first_seconds=backoff),
        alerts=AlertSettings(
            webhook=alert_address(alert_webhook, "--alert-webhook"),
            slack_webhook=alert_address(alert_slack, "--alert-slack"),
            command=alert_command,
        ),
    )
    provider = provider_named(notices)
    adopt_orphans()
    with ReceivedSignals() as signals:
        private = claim_folder(settings.command, settings.run, os.environ)
        outcome = Supervisor(
            settings,
            private,
            signals,
            environment=os.environ,
            clock=SYSTEM_CLOCK,
            say=_say,
            notices=None if provider is None else MetadataPoller(provider, say=_say, seconds=notices_every),
        ).run()
    if as_json:
        print_json_line(
            {
                "exit_code": outcome.exit_code,
                "reason": outcome.reason,
                "restarts": outcome.num_restarts,
                "ends": outcome.ends,
            }
        )
    raise typer.Exit(outcome.exit_code)


def _say(text: str) -> None:
    """Print a line beside the command's own output; a closed standard error ends no training."""
    try:
        typer.echo(f"crashproof run: {clean(text)}", err=True)
    except OSError:
        return


def _progress_limits(given: list[str]) -> ProgressLimits:
    limits: dict[Phase, float] = {}
    for each in given:
        name, equals, text = each.rpartition("=")
        phase = name if equals else Phase.TRAINING
        if phase not in tuple(Phase):
            raise ConfigError(f"{name!r} is not a phase.", hint=f"Known: {', '.join(Phase)}.")
        if text == _AUTO:
            limits.pop(Phase(phase), None)
            continue
        try:
            limits[Phase(phase)] = float(text)
        except ValueError:
            limits[Phase(phase)] = -1.0
        if not 0.0 < limits[Phase(phase)]:
            raise ConfigError(
                f"--patience {each!r} is not a number of seconds above 0.", hint="Pass --patience 900, or auto."
            )
    return ProgressLimits(given=limits)


def _codes(text: str) -> frozenset[int] | None:
    if text == "all":
        return None
    try:
        return frozenset(int(each) for each in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--restart-on {text!r} is not a list of exit codes.", hint="Pass codes such as 1,75, or all."
        ) from None
