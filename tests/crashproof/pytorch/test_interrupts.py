import os
import signal
import threading

import pytest

from crashproof.pytorch.interrupts import EXIT_PREEMPTED, Interrupts, StopRequested

ASKING = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_nothing_is_requested_at_first() -> None:
    with Interrupts() as interrupts:
        interrupts.raise_if_requested()

        assert not interrupts.is_requested
        assert interrupts.received is None


@pytest.mark.parametrize("number", ASKING, ids=lambda number: number.name)
def test_a_signal_only_sets_the_flag(number: signal.Signals) -> None:
    with Interrupts() as interrupts:
        send(number)

        assert interrupts.is_requested
        assert number == interrupts.received


def test_work_with_nothing_to_save_can_be_left() -> None:
    with Interrupts() as interrupts:
        send(signal.SIGTERM)

        with pytest.raises(StopRequested, match="SIGTERM"):
            interrupts.raise_if_requested()


def test_the_first_signal_is_the_one_reported() -> None:
    with Interrupts() as interrupts:
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        send(signal.SIGTERM)

        assert signal.SIGUSR1 == interrupts.received


def test_a_second_ctrl_c_aborts_at_once() -> None:
    with Interrupts() as interrupts:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)

        assert signal.SIGINT == interrupts.received


def test_one_ctrl_c_after_a_sigterm_does_not_abort() -> None:
    with Interrupts() as interrupts:
        send(signal.SIGTERM)
        send(signal.SIGINT)

        assert signal.SIGTERM == interrupts.received


def test_the_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in ASKING]
    with pytest.raises(RuntimeError), Interrupts():
        assert before != [signal.getsignal(number) for number in ASKING]
        raise RuntimeError

    assert before == [signal.getsignal(number) for number in ASKING]


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            send(signal.SIGHUP)

            assert not interrupts.is_requested
        assert signal.SIG_IGN is signal.getsignal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_beside_the_main_one_leaves_the_handlers_alone() -> None:
    before = [signal.getsignal(number) for number in ASKING]
    seen = []

    def enter() -> None:
        with Interrupts() as interrupts:
            seen.append((interrupts.is_requested, [signal.getsignal(number) for number in ASKING]))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()

    assert [(False, before)] == seen


def test_a_forked_worker_ends_at_sigterm_and_leaves_the_rest_to_its_parent() -> None:
    # Whoever measures coverage has a handler of its own.
    usual = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with Interrupts() as interrupts:
        worker = os.fork()
        if worker == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(worker, 0)

        assert signal.SIGTERM == os.WTERMSIG(status)
        assert not interrupts.is_requested
        signal.raise_signal(signal.SIGUSR1)
        assert interrupts.is_requested
    signal.signal(signal.SIGTERM, usual)


def test_a_worker_forked_after_the_training_has_the_usual_handlers() -> None:
    usual = signal.getsignal(signal.SIGINT)
    with Interrupts():
        pass
    worker = os.fork()
    if worker == 0:
        os._exit(signal.getsignal(signal.SIGINT) != usual)

    assert 0 == os.waitpid(worker, 0)[1]


def test_start_me_again_has_an_exit_code_of_its_own() -> None:
    assert os.EX_TEMPFAIL == EXIT_PREEMPTED
