"""What a proof makes of commands that it cannot certify, each for its own reason."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from crashproof.errors import ConfigError
from crashproof.proof.prover import prove_command
from crashproof.proof.scratch import Scratch, scratch_folder
from crashproof.records.proof.certificate import Certificate

START = """
import json, os, random, subprocess, sys, time
from pathlib import Path
from crashproof import ProgressTracker, get_recovery_checkpoint, training_progress_context, write_atomically

def write(path, content):
    return write_atomically(path, lambda file: file.write(content))

OUTPUT, HERE = Path(sys.argv[1]), Path(__file__).parent
def number_of_this_start():
    counter = HERE / "starts"
    number = int(counter.read_text()) + 1 if counter.exists() else 1
    counter.write_text(str(number))
    return number
"""
LOOP = """
CONFIG, STEPS, OFFSET = {}, 12, 0.0
{before}
found = get_recovery_checkpoint(OUTPUT, CONFIG)
done = json.loads(found[0].read_text()) if found else 0
with training_progress_context(CONFIG, OUTPUT, STEPS) as progress:
    for step in range(done + 1, STEPS + 1):
        {inside}
        progress.update_metrics(step, 1 / step + OFFSET, {}, 0.1, step, step)
        if step % 2 == 0:
            {save}
{after}
"""
SAVE = """
            path = OUTPUT / f"checkpoint_{step}.json"
            progress.record_checkpoint(step, path, step, written=write(path, b"%d" % step))
"""


def loop(*, before: str = "", inside: str = "pass", save: str = SAVE.strip(), after: str = "") -> str:
    given = {"{before}": before, "{inside}": inside, "{save}": save, "{after}": after}
    program = LOOP
    for place, text in given.items():
        program = program.replace(place, text)
    return program


def prove(tmp_path: Path, program: str, *, num_kills: int = 3, **more: float) -> Certificate:
    script = tmp_path / "train.py"
    script.write_text(START + program)
    command = [sys.executable, str(script), "{output_dir}"]
    return prove_command(command, Scratch(tmp_path / "scratch"), num_kills=num_kills, say=lambda text: None, **more)


ONLY_AT = "if number_of_this_start() == {number}: sys.exit({code})"


@pytest.mark.parametrize(
    "program, verdict, cause",
    [
        pytest.param("print('trained')", "not_provable", "no_tracker", id="no-tracker"),
        pytest.param("sys.exit(3)", "not_provable", "fails", id="fails"),
        pytest.param("os.kill(os.getpid(), 11)", "not_provable", "fails", id="killed-by-a-signal"),
        pytest.param("sys.exit(75)", "not_provable", "fails", id="preempted-by-itself"),
        pytest.param(
            loop(before=ONLY_AT.format(number=2, code=1)), "not_provable", "fails_at_times", id="fails-at-times"
        ),
        pytest.param(
            "training_progress_context({}, OUTPUT, 5).__enter__().__exit__(None, None, None)",
            "not_provable",
            "no_steps",
            id="no-steps",
        ),
        pytest.param(loop(save="pass"), "not_provable", "no_checkpoint", id="no-checkpoint"),
        pytest.param(
            "for steps in (2, 4):\n"
            "    with training_progress_context({}, OUTPUT, 4) as progress:\n"
            "        progress.update_metrics(steps, 1.0, {}, 0.1, steps, 0)\n",
            "not_provable",
            "several_attempts",
            id="several-attempts",
        ),
        pytest.param(
            loop(before="STEPS += number_of_this_start()"), "not_deterministic", "not_repeatable", id="other-lengths"
        ),
        pytest.param(loop(inside="OFFSET = random.random()"), "not_deterministic", "unseeded", id="not-seeded"),
        pytest.param(loop(inside="OFFSET = time.time()"), "not_deterministic", "not_repeatable", id="reads-the-time"),
        pytest.param(
            loop(inside="if step < 3: found = None", before="get_recovery_checkpoint = lambda *_: None"),
            "not_exact",
            "starts_from_zero",
            id="starts-from-zero",
        ),
        pytest.param(
            loop(before="CONFIG['started'] = time.time_ns()"), "not_exact", "config_changes", id="config-changes"
        ),
        pytest.param(
            loop(before="if OUTPUT.joinpath('progress').exists(): sys.exit(1)"),
            "not_exact",
            "does_not_start_again",
            id="refuses-to-start-again",
        ),
        pytest.param(
            loop(before="STEPS = 12", inside="if found and step == 9: break"), "not_exact", "length", id="ends-early"
        ),
    ],
)
def test_a_command_that_cannot_be_certified_is_told_why(program, verdict, cause, tmp_path):
    certificate = prove(tmp_path, program)

    assert certificate.problem is not None
    assert (verdict, cause) == (certificate.verdict, certificate.problem.cause)


def test_a_run_elsewhere_is_left_alone(tmp_path):
    elsewhere = tmp_path / "mine"
    certificate = prove(tmp_path, f"OUTPUT = Path({str(elsewhere)!r})\n" + loop())

    assert "ignores_the_folder" == certificate.problem.cause
    assert str(elsewhere) in certificate.problem.sentence
    assert not elsewhere.exists()


def test_a_torn_checkpoint_is_found_by_the_kill_in_a_save(tmp_path):
    newest = "sorted(OUTPUT.glob('checkpoint_*.json'), key=lambda p: int(p.stem[11:]))"
    program = loop(
        before=f"get_recovery_checkpoint = lambda *_: [{newest}[-1]] if {newest} else None",
        save=(
            "path = OUTPUT / f'checkpoint_{step}.json'\n"
            "            with path.open('wb') as file:\n"
            "                file.flush()\n"
            "                time.sleep(0.4)\n"
            "                file.write(b'%d' % step)\n"
            "            progress.record_checkpoint(step, path, step)"
        ),
    )
    certificate = prove(tmp_path, program)

    assert ("not_exact", "does_not_start_again", 2) == (
        certificate.verdict,
        certificate.problem.cause,
        certificate.problem.resume,
    )
    assert "in_a_save" == certificate.kills[-1].moment
    assert "JSONDecodeError" in "".join(certificate.output_tail)


def test_a_resume_that_hangs_is_told(tmp_path):
    program = loop(before="if OUTPUT.joinpath('progress').exists(): time.sleep(600)")
    certificate = prove(tmp_path, program, least_limit_seconds=0.5)

    assert "does_not_start_again" == certificate.problem.cause
    assert "It did not end within" in certificate.problem.detail


def test_a_start_that_fails_once_is_tried_again(tmp_path):
    certificate = prove(tmp_path, loop(before=ONLY_AT.format(number=4, code=1)))

    assert "exact" == certificate.verdict
    assert ["start-4-killed-2 ended with exit code 1; it was tried again."] == certificate.notes


def test_a_start_that_asks_to_be_started_again_is(tmp_path):
    certificate = prove(tmp_path, loop(before=ONLY_AT.format(number=4, code=75)))

    assert ("exact", []) == (certificate.verdict, certificate.notes)


def test_a_component_of_the_loss_that_is_a_time_is_passed_over(tmp_path):
    program = loop().replace("OFFSET, {}", "OFFSET, {'seconds': time.time()}")
    certificate = prove(tmp_path, program, num_kills=1)

    assert ("exact", ["loss_components.seconds", "random.python"]) == (certificate.verdict, certificate.passed_over)


def test_kills_that_the_run_is_too_short_for_are_left_out(tmp_path):
    certificate = prove(tmp_path, loop(before="STEPS = 3"), num_kills=5)

    assert "exact" == certificate.verdict
    assert 1 <= len(certificate.kills) < 5
    assert ["The run ended before it was killed so often"] == [each.partition(";")[0] for each in certificate.notes]


def test_a_kill_ends_all_processes_of_the_command(tmp_path):
    program = loop(
        before="child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], "
        "start_new_session=True)\n(HERE / f'child-{child.pid}').touch()",
        after="child.kill()",
    )
    prove(tmp_path, program, num_kills=1)

    children = [int(path.name.partition("-")[2]) for path in tmp_path.glob("child-*")]
    assert len(children) == 4
    deadline = time.monotonic() + 10
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [] == [pid for pid in children if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_command_has_to_be_told_where_to_train(tmp_path):
    with pytest.raises(ConfigError, match="output_dir"):
        prove_command(["true"], Scratch(tmp_path), num_kills=1, say=print)


def test_a_scratch_folder_that_is_kept_must_be_empty(tmp_path):
    kept = tmp_path / "kept"
    with scratch_folder(kept) as scratch:
        (scratch.root / "note").touch()

    assert kept.is_dir()
    with pytest.raises(ConfigError, match="not empty"), scratch_folder(kept):
        pass


def test_a_temporary_scratch_folder_is_removed():
    with scratch_folder(None) as scratch:
        assert scratch.root.is_dir()

    assert not scratch.root.exists()
