"""`crashproof run` gives the right verdict on all that can happen to a training, with real children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from supervised_program import main as train
from supervising import Supervised, small_memory_group, start, supervise

from crashproof import RunReader
from crashproof.records.events import ProcessEnded

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are seen in /proc")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last checkpoint of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert 0 == train(folder, "finishes", 12)
    return (folder / "checkpoint_12.json").read_bytes()


def plain(folder: Path, mode: str) -> Supervised:
    return supervise(folder, mode)


def out_of_memory(folder: Path, mode: str) -> Supervised:
    with small_memory_group() as group:
        if group is None:
            pytest.skip("no control group may be made here")
        return supervise(folder, mode, OOM_GROUP=str(group))


def stopped(folder: Path, mode: str) -> Supervised:
    """Stopped for longer than the limit, then continued."""
    run = start(folder, mode)
    lines: list[str] = []
    assert run.process.stderr is not None
    while not any("which is no hang" in line for line in lines):
        lines.append(run.process.stderr.readline())
        assert lines[-1], lines
    # Longer than the limit of 1 s.
    signal.sigtimedwait([], 2.5)
    os.kill(int((folder / "stopped").read_text()), signal.SIGCONT)
    return run.wait()


def supervisor_killed(folder: Path, mode: str) -> Supervised:
    """Its supervisor is killed while it trains; another one is started."""
    first = start(folder, mode, "--patience", "60")
    first.wait_until((folder / "slow").exists)
    first.process.kill()
    first.process.wait(30)
    for each in (first.process.stdout, first.process.stderr):
        assert each is not None
        each.close()
    second = start(folder, mode, "--patience", "60", mark=first.mark)
    assert second.process.stderr is not None
    while "is still there" not in (line := second.process.stderr.readline()):
        assert line
    (folder / "go_on").touch()
    return second.wait()


SCENARIOS: dict[str, tuple[str, Callable[[Path, str], Supervised], int, list[str]]] = {
    "finishes": ("finishes", plain, 0, ["completed"]),
    "ends-with-0-too-early": ("exits_early", plain, 4, ["ended_early"]),
    "same-error-each-time": ("always_raises", plain, 3, ["exception"] * 3),
    "out-of-memory": ("is_out_of_memory", out_of_memory, 0, ["out_of_memory", "completed"]),
    "hangs-in-python": ("hangs_in_python", plain, 0, ["hang", "completed"]),
    "hangs-in-c-with-the-lock": ("hangs_in_c", plain, 0, ["hang", "completed"]),
    "stopped-by-SIGSTOP": ("is_stopped", stopped, 0, ["completed"]),
    "slow-save": ("saves_slowly", plain, 0, ["completed"]),
    "slow-evaluation": ("evaluates_slowly", plain, 0, ["completed"]),
    "hangs-in-its-handler": ("hangs_in_handler", plain, 0, ["hang", "completed"]),
    "damaged-newest-checkpoint": ("damages_newest", plain, 0, ["signal", "completed"]),
    "supervisor-killed": ("waits", supervisor_killed, 0, ["completed"]),
}
"""The mode of the program, what is done to it, the supervisor's exit code, and the cause of each life's end."""


def check(name: str, folder: Path, weights: bytes) -> None:
    mode, run_it, code, causes = SCENARIOS[name]
    run = run_it(folder, mode)

    assert causes == run.causes, run.said
    assert code == run.code
    assert [] == run.left_processes()
    if code == 0:
        assert weights == run.weights()
    recorded = [each for each in RunReader.open(folder).events() if isinstance(each, ProcessEnded)]
    assert causes == [each.cause for each in recorded]
    assert [] == [each for each in RunReader.open(folder).problems() if mode != "damages_newest"]
    for each in recorded:
        assert (each.cause == "hang") == (each.stacks is not None)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_verdict_is_right_and_nothing_is_left(name, tmp_path, uninterrupted):
    check(name, tmp_path / "run", uninterrupted)


@pytest.mark.long
@pytest.mark.parametrize("trial", range(1, 20))
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_verdict_is_right_every_time(name, trial, tmp_path, uninterrupted):
    check(name, tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("mode, place", [("hangs_in_python", "hang_in_python"), ("hangs_in_c", "hang_in_c")])
def test_the_stacks_of_a_hang_name_the_line(mode, place, tmp_path):
    run = supervise(tmp_path / "run", mode)
    stacks = tmp_path / "run" / run.outcome["ends"][0]["stacks"]

    assert f"in {place}" in stacks.read_text()


@pytest.mark.parametrize(
    "mode, code, causes",
    [
        pytest.param("exits_2", 2, ["error"], id="a-reported-error"),
        pytest.param("asks_again", 0, ["start_again", "completed"], id="75"),
        pytest.param("is_killed", 0, ["signal", "completed"], id="a-signal"),
        pytest.param("raises", 0, ["exception", "completed"], id="an-exception-once"),
        pytest.param("always_raises_at_start", 3, ["exception"] * 3, id="before-the-run-is-open"),
    ],
)
def test_what_is_restarted(mode, code, causes, tmp_path):
    run = supervise(tmp_path / "run", mode)

    assert causes == run.causes
    assert code == run.code


def test_a_checkpoint_that_no_resume_survives_is_passed_over(tmp_path, uninterrupted):
    run = supervise(tmp_path / "run", "poisoned")

    assert (0, ["signal", "exception", "exception", "completed"]) == (run.code, run.causes)
    assert "checkpoint_6.json is suspect and passed over" in run.said
    assert uninterrupted == run.weights()


def test_where_no_resume_survives_at_all_no_checkpoint_is_blamed(tmp_path):
    run = supervise(tmp_path / "run", "always_dies_on_resume")

    assert 3 == run.code
    assert [] == RunReader.open(tmp_path / "run").session().checkpoints_suspect
    assert "not suspect any more" in run.said


def test_a_command_without_a_tracker_is_restarted_by_its_exit_code(tmp_path):
    command = ["sh", "-c", "test -e again && exit 0; touch again; exit 1"]
    run = supervise(tmp_path / "run", "", command=command)

    assert (0, ["exception", "completed"]) == (run.code, run.causes)


def test_a_command_without_a_tracker_hangs_when_its_file_stays_as_it_is(tmp_path):
    command = ["sh", "-c", "test -e again && exit 0; touch again; for i in 1 2 3; do echo >>out; done; sleep 600"]
    run = supervise(tmp_path / "run", "", "--watch-file", "out", command=command)

    assert (0, ["hang", "completed"]) == (run.code, run.causes)
    assert [] == run.left_processes()


def test_a_command_that_cannot_be_run_is_an_error(tmp_path):
    run = supervise(tmp_path / "run", "", command=["./no-such-program"])

    assert 2 == run.code
    assert "cannot be run" in run.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_request_to_stop_is_passed_on_and_asks_for_a_restart(number, tmp_path):
    run = start(tmp_path / "run", "waits", "--patience", "60")
    run.wait_until((tmp_path / "run" / "slow").exists)
    run.process.send_signal(number)
    run.wait()

    assert (75, ["preemption"]) == (run.code, run.causes)
    assert [] == run.left_processes()
    assert 1 == RunReader.open(tmp_path / "run").session().supervision.notices


def test_stop_asks_the_supervisor_so_that_nothing_is_started_again(tmp_path):
    run = start(tmp_path / "run", "waits", "--patience", "60")
    run.wait_until((tmp_path / "run" / "slow").exists)
    stopped = subprocess.run(
        [sys.executable, "-c", "from crashproof.cli import main; main()", "stop", str(tmp_path / "run")], check=False
    )
    run.wait()

    assert (0, 75, ["preemption"]) == (stopped.returncode, run.code, run.causes)


def test_below_a_shell_the_process_of_the_run_is_asked_to_stop(tmp_path):
    folder = tmp_path / "run"
    program = Path(__file__).parents[1] / "supervised_program.py"
    script = f"trap 'exit 9' TERM; python {program} {folder} waits; exit $?"
    run = start(folder, "", "--patience", "60", command=["bash", "-c", script])
    run.wait_until((folder / "slow").exists)
    run.process.send_signal(signal.SIGTERM)
    run.wait()

    assert 75 == run.code
    assert [] == run.left_processes()


def test_two_supervisors_of_one_command_do_not_share_a_child(tmp_path):
    first = start(tmp_path / "run", "waits", "--patience", "60")
    first.wait_until((tmp_path / "run" / "slow").exists)
    second = supervise(tmp_path / "run", "waits", "--patience", "60", "--max-restarts", "0", "--same-failures", "2")
    (tmp_path / "run" / "go_on").touch()
    first.wait()

    # The run belongs to the first.
    assert 0 != second.code
    assert (0, ["completed"]) == (first.code, first.causes)
