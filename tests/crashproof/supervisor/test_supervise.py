"""The supervisor as a shell sees it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from supervised_program import main as train
from supervising import PROGRAM, start, supervise

from crashproof import RunReader
from crashproof.records.states import AlertKind

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are seen in /proc")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last checkpoint of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert 0 == train(folder, "finishes", 12)
    return (folder / "checkpoint_12.json").read_bytes()


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
    script = f"trap 'exit 9' TERM; {sys.executable} {PROGRAM} {folder} waits; exit $?"
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


def test_restarts_and_the_end_are_alerted(tmp_path):
    folder = tmp_path / "run"
    run = supervise(folder, "raises", "--alert-command", f"cat >> {tmp_path}/alerts; echo >> {tmp_path}/alerts")

    sent = [json.loads(line) for line in (tmp_path / "alerts").read_text().splitlines() if line]
    assert 0 == run.code
    assert ["restarted", "complete"] == [each["kind"] for each in sent]
    assert "exception: RuntimeError" in sent[0]["message"]
    assert (12, 100.0) == (sent[1]["step"], sent[1]["progress_pct"])
    session = RunReader.open(folder).session()
    assert AlertKind.RESTARTED in [each.kind for each in session.alerts]


def test_without_a_run_the_alert_names_the_command(tmp_path):
    command = ["sh", "-c", "exit 2"]
    run = supervise(tmp_path / "run", "", "--alert-command", f"cat >> {tmp_path}/alerts", command=command)

    sent = json.loads((tmp_path / "alerts").read_text())
    assert (2, "gave_up", "sh -c 'exit 2'") == (run.code, sent["kind"], sent["run"])


def test_a_supervisor_that_was_killed_with_its_child_goes_by_the_run(tmp_path):
    folder = tmp_path / "run"
    first = start(folder, "waits", "--patience", "60")
    first.wait_until((folder / "slow").exists)
    first.process.kill()
    first.process.wait(30)
    subprocess.run(["kill", "-9", (folder / "slow").read_text()], check=True)
    for each in (first.process.stdout, first.process.stderr):
        assert each is not None
        each.close()
    second = start(folder, "waits", "--patience", "60", mark=first.mark).wait()

    assert (0, ["unknown", "completed"]) == (second.code, second.causes)
    assert 1 == RunReader.open(folder).session().supervision.restarts


def test_a_run_that_is_written_already_is_supervised_and_not_started_twice(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with subprocess.Popen([sys.executable, str(PROGRAM), str(folder), "waits"]) as by_hand:
        deadline = time.monotonic() + 60
        while not (folder / "slow").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run = start(folder, "waits", "--patience", "60", "--run", str(folder))
        assert run.process.stderr is not None
        said = run.process.stderr.readline()
        (folder / "go_on").touch()
        run.wait()

    assert f"process {by_hand.pid} is still there" in said
    assert (0, ["completed"]) == (run.code, run.causes)


def test_a_second_request_to_stop_leaves_little_time(tmp_path):
    folder = tmp_path / "run"
    run = start(folder, "hangs_in_handler", "--patience", "60", "--grace", "60")
    run.wait_until(lambda: (folder / "checkpoint_6.json").exists())
    # The handler is set a moment later.
    signal.sigtimedwait([], 1.0)
    run.process.send_signal(signal.SIGTERM)
    signal.sigtimedwait([], 0.5)
    run.process.send_signal(signal.SIGTERM)
    run.wait()

    assert (75, ["preemption"]) == (run.code, run.causes)
    assert "again; SIGKILL follows in 5 s" in run.said


def test_a_request_to_stop_between_two_lives_ends_the_supervisor(tmp_path):
    folder = tmp_path / "run"
    run = start(folder, "raises", "--backoff", "600")
    run.wait_until(lambda: "process_ended" in _events(folder))
    run.process.send_signal(signal.SIGTERM)
    run.wait()

    assert 75 == run.code
    assert "nothing is running" in run.said


@pytest.mark.parametrize(
    "options, said",
    [
        pytest.param(["--patience", "sleeping=5"], "is not a phase", id="an-unknown-phase"),
        pytest.param(["--patience", "soon"], "is not a number of seconds", id="not-a-number"),
        pytest.param(["--patience", "saving=0"], "is not a number of seconds", id="zero"),
        pytest.param(["--restart-on", "some"], "is not a list of exit codes", id="not-codes"),
        pytest.param(["--notices", "azure"], "names no cloud", id="an-unknown-cloud"),
    ],
)
def test_what_cannot_be_meant_is_an_error(options, said, tmp_path):
    run = supervise(tmp_path / "run", "finishes", *options)

    assert 2 == run.code
    assert said in run.said


def test_only_the_codes_that_are_listed_restart(tmp_path):
    run = supervise(tmp_path / "run", "raises", "--restart-on", "75,9", "--patience", "auto")

    assert (1, ["exception"]) == (run.code, run.causes)


def test_a_task_of_srun_is_told_from_its_neighbour(tmp_path):
    """Two tasks of one job on one machine: the same command, in the same folder."""
    command = ["sh", "-c", "echo $SLURM_PROCID >> who; test $SLURM_PROCID = 0 && exit 0; exit 9"]
    tasks = [
        start(tmp_path / "run", "", "--restart-on", "1", command=command, SLURM_JOB_ID="7", SLURM_PROCID=str(rank))
        for rank in range(2)
    ]

    assert [0, 9] == [each.wait().code for each in tasks]
    assert {"0", "1"} == set((tmp_path / "run" / "who").read_text().split())


def _events(folder: Path) -> str:
    events = folder / "progress" / "events.jsonl"
    return events.read_text() if events.exists() else ""
