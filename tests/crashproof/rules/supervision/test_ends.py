from __future__ import annotations

import pytest

from crashproof.records.states import AttemptState
from crashproof.records.supervision import EndCause
from crashproof.rules.supervision.ends import EndFacts, cause_of, exit_code_of_signal

KILLED = {"exit_code": None, "signal": 9, "signal_name": "SIGKILL"}
UNSEEN = {"exit_code": None, "signal": None, "signal_name": None}


def exited(code: int) -> dict:
    return {"exit_code": code, "signal": None, "signal_name": None}


@pytest.mark.parametrize(
    "facts, expected",
    [
        pytest.param({**KILLED, "hang": "no progress"}, (EndCause.HANG, "no progress"), id="a-hang-that-was-killed"),
        pytest.param({**exited(75), "stop": "SIGTERM"}, (EndCause.PREEMPTION, "SIGTERM"), id="asked-to-stop"),
        pytest.param(
            {**exited(0), "stop": "SIGTERM", "is_complete": True},
            (EndCause.COMPLETED, "it ended well"),
            id="complete-although-asked-to-stop",
        ),
        pytest.param({**exited(0), "is_complete": True}, (EndCause.COMPLETED, "it ended well"), id="complete"),
        pytest.param(exited(0), (EndCause.COMPLETED, "it ended well"), id="well-without-a-run"),
        pytest.param(
            {**exited(0), "is_complete": False},
            (EndCause.ENDED_EARLY, "it ended well before the run's last step"),
            id="well-but-early",
        ),
        pytest.param(
            {**KILLED, "oom_line": "Killed process 7"}, (EndCause.OUT_OF_MEMORY, "Killed process 7"), id="kernel-log"
        ),
        pytest.param(
            {**KILLED, "oom_kills": 2},
            (EndCause.OUT_OF_MEMORY, "the kernel killed 2 of its processes (OOM)"),
            id="counter-and-killed",
        ),
        pytest.param(
            {**exited(1), "oom_kills": 1},
            (EndCause.OUT_OF_MEMORY, "the kernel killed 1 of its processes (OOM)"),
            id="a-worker-was-killed",
        ),
        pytest.param(
            {**exited(139), "oom_kills": 1}, (EndCause.SIGNAL, "signal 11"), id="counter-but-another-signal"
        ),
        pytest.param(exited(75), (EndCause.START_AGAIN, "exit code 75"), id="75"),
        pytest.param({**exited(75), "error": "RankLost: 1"}, (EndCause.START_AGAIN, "RankLost: 1"), id="75-and-why"),
        pytest.param(KILLED, (EndCause.SIGNAL, "SIGKILL"), id="a-signal"),
        pytest.param(exited(137), (EndCause.SIGNAL, "signal 9"), id="a-signal-told-by-a-shell"),
        pytest.param(
            {**exited(1), "error": "OSError: [Errno 28] No space left on device"},
            (EndCause.DISK, "OSError: [Errno 28] No space left on device"),
            id="a-full-disk",
        ),
        pytest.param(
            {**exited(2), "error": "DiskFull: x"}, (EndCause.DISK, "DiskFull: x"), id="a-full-disk-reported"
        ),
        pytest.param({**exited(2), "error": "bad key"}, (EndCause.ERROR, "bad key"), id="a-reported-error"),
        pytest.param(exited(2), (EndCause.ERROR, "exit code 2"), id="2"),
        pytest.param(exited(127), (EndCause.ERROR, "the command was not found"), id="not-found"),
        pytest.param(exited(1), (EndCause.EXCEPTION, "exit code 1"), id="1"),
        pytest.param(
            {**exited(1), "error": "ValueError: x"}, (EndCause.EXCEPTION, "ValueError: x"), id="an-exception"
        ),
        pytest.param(
            UNSEEN,
            (EndCause.UNKNOWN, "nobody saw it end, as its supervisor had been killed"),
            id="unseen",
        ),
        pytest.param(
            {**UNSEEN, "attempt_state": AttemptState.COMPLETED, "is_complete": True},
            (EndCause.COMPLETED, "it ended well"),
            id="unseen-and-recorded-as-complete",
        ),
        pytest.param(
            {**UNSEEN, "attempt_state": AttemptState.RAISED, "error": "ValueError"},
            (EndCause.UNKNOWN, "ValueError"),
            id="unseen-and-raised",
        ),
    ],
)
def test_the_cause_of_an_end(facts, expected):
    assert expected == cause_of(EndFacts(**facts))


def test_a_signal_has_the_exit_code_of_shells():
    assert 143 == exit_code_of_signal(15)
