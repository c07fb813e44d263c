"""Processes that share a store, are killed in it, and stand still in it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from response_stores import CENT, SqlStoreFixture, answered, intent, key_of

from crashproof.answers.store import Busy, Granted
from crashproof.clock import SYSTEM_CLOCK

PROGRAM = Path(__file__).parents[2] / "store_process.py"
LEASE_SECONDS = 1.0


@contextmanager
def process(
    stores: SqlStoreFixture,
    *words: object,
    account: str = "us",
    lease_seconds: float = LEASE_SECONDS,
    inside: tuple[str, ...] = (),
) -> Iterator:
    command = [*inside, sys.executable, PROGRAM, stores.url, account, lease_seconds, *words]
    with subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def at_once(*processes: AbstractContextManager) -> list[int]:
    """What all of them together have sent."""
    with ExitStack() as stack:
        running = [stack.enter_context(each) for each in processes]
        for each in running:
            each.stdin.write("go\n")
            each.stdin.flush()
        return [question for each in running for question in json.loads(each.communicate()[0])]


@pytest.fixture
def store(shared):
    """Of this process, with everybody's clock."""
    return shared.open("others", lease_seconds=LEASE_SECONDS, clock=SYSTEM_CLOCK)


@pytest.fixture
def in_container() -> tuple[str, ...]:
    """What runs a command in a PID namespace of its own."""
    # The first process of a namespace cannot be killed from inside.
    shell = ("sh", "-c", '"$@"; true', "sh")
    command = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *shell)
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no PID namespaces can be made here")
    return command


def granted_in_the_end(store) -> tuple[list[Busy], Granted]:
    """Ask for "a" as a client does, until it may be sent."""
    told = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        (verdict,) = store.begin([intent("a")], budget=None)
        if isinstance(verdict, Granted):
            return told, verdict
        assert isinstance(verdict, Busy)
        told.append(verdict)
        time.sleep(verdict.seconds)
    pytest.fail("it was never granted")


@pytest.mark.parametrize("accounts", [("us", "us"), ("us", "others")], ids=["one-account", "two-accounts"])
def test_two_processes_send_each_request_once(shared, accounts):
    one = process(shared, "race", 60, 100, account=accounts[0])
    other = process(shared, "race", 60, 100, account=accounts[1])
    sent = at_once(one, other)

    assert list(range(60)) == sorted(sent)
    assert 60 * CENT == sum(shared.open(account).spending().spent for account in set(accounts))
    assert [] == shared.open().problems()


def test_two_processes_stay_within_one_budget(shared):
    sent = at_once(process(shared, "race", 30, "0.2"), process(shared, "race", 30, "0.2"))

    assert 20 == len(sent)
    assert Decimal("0.2") == shared.open().spending().committed


def test_a_request_of_a_killed_process_is_in_doubt_and_sent_by_another_long_before_its_lease_expires(shared, store):
    with process(shared, "die", "a", lease_seconds=3600.0) as killed:
        assert "begun\n" == killed.stdout.readline()
        told, _ = granted_in_the_end(store)

    assert -signal.SIGKILL == killed.returncode
    # It may be asked for while the process is still dying.
    assert {f"{killed.pid}"} >= {busy.holder.partition(":")[2] for busy in told}
    ((reason,),) = shared.execute("SELECT reason FROM crashproof_requests WHERE state = 'lost'")
    assert (f"{killed.pid} has ended") == reason.partition(":")[2]
    dead = shared.open("us").spending()
    assert (1, CENT, 0) == (dead.requests_in_doubt, dead.in_doubt, dead.reserved)
    assert (0, CENT) == (store.spending().requests_in_doubt, store.spending().reserved)


def test_a_process_that_stood_still_for_too_long_does_not_lose_its_answer(shared, store):
    with process(shared, "freeze", "a") as frozen:
        assert "begun\n" == frozen.stdout.readline()
        _, request = granted_in_the_end(store)
        frozen.send_signal(signal.SIGCONT)
        assert "kept\n" == frozen.stdout.readline()
    store.finish([answered(request, CENT)])

    assert {"text": "late"} == store.read(key_of("a")).response
    late, second = shared.open("us").spending(), store.spending()
    assert (1, CENT, 0, 0) == (late.answers, late.spent, late.wasted, late.in_doubt)
    assert (0, CENT, CENT, 0) == (second.answers, second.spent, second.wasted, second.reserved)
    assert [] == store.problems()


def test_a_process_that_works_longer_than_its_lease_keeps_it(shared):
    holder = shared.open("us", lease_seconds=2.0, clock=SYSTEM_CLOCK)
    (request,) = holder.begin([intent("a")], budget=None)
    time.sleep(3.0)
    (verdict,) = shared.open("others", clock=SYSTEM_CLOCK).begin([intent("a")], budget=None)

    assert isinstance(request, Granted)
    assert isinstance(verdict, Busy)


def test_a_fork_is_told_to_open_the_store_by_itself(shared):
    with process(shared, "fork") as forked:
        told = forked.communicate()[0].splitlines()

    assert "this is a fork: open it again here" in told[0]
    assert "0.01" == told[1]


def test_a_request_of_a_killed_process_of_another_pid_namespace_has_its_whole_lease(shared, store, in_container):
    """Its process id stands for another process here, or for none."""
    lease_seconds = 4.0
    with process(shared, "die", "a", lease_seconds=lease_seconds, inside=in_container) as killed:
        assert "begun\n" == killed.stdout.readline()
        killed.wait()
        begun_at = time.monotonic()
        told, _ = granted_in_the_end(store)

    assert time.monotonic() - begun_at > lease_seconds / 2
    assert told
    ((reason,),) = shared.execute("SELECT reason FROM crashproof_requests WHERE state = 'lost'")
    assert "did not renew it in time" in reason
