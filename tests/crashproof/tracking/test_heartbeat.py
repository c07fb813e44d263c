from __future__ import annotations

import logging
import threading

from crashproof.tracking.heartbeat import Heartbeat


def test_it_beats_until_stopped():
    beats = threading.Semaphore(0)
    heartbeat = Heartbeat(beats.release, interval_seconds=0.001)
    has_beaten = [beats.acquire(timeout=10) for _ in range(3)]
    heartbeat.stop()

    assert [True] * 3 == has_beaten
    assert "crashproof-heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_failed_beat_is_logged_and_the_next_one_follows(caplog):
    beats = threading.Semaphore(0)

    def fail() -> None:
        beats.release()
        raise ValueError("no space")

    heartbeat = Heartbeat(fail, interval_seconds=0.001)
    has_beaten = [beats.acquire(timeout=10) for _ in range(2)]
    heartbeat.stop()

    assert [True] * 2 == has_beaten
    assert {("crashproof", logging.ERROR, "Housekeeping failed; trying again every 0.001 s.")} == set(
        caplog.record_tuples
    )


def test_a_beat_may_stop_its_own_heart():
    stopped = threading.Event()
    hearts: list[Heartbeat] = []
    is_ready = threading.Event()

    def stop() -> None:
        is_ready.wait(10)
        hearts[0].stop()
        stopped.set()

    hearts.append(Heartbeat(stop, interval_seconds=0.001))
    is_ready.set()

    assert stopped.wait(10)
    hearts[0].stop()


def test_it_does_not_keep_the_process_alive():
    heartbeat = Heartbeat(lambda: None, interval_seconds=60)
    threads = [thread for thread in threading.enumerate() if thread.name == "crashproof-heartbeat"]
    heartbeat.stop()

    assert [True] == [thread.daemon for thread in threads]


def test_without_a_thread_nothing_ends_and_a_later_start_succeeds(monkeypatch, caplog):
    beats = threading.Semaphore(0)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    heartbeat = Heartbeat(beats.release, interval_seconds=0.001)
    heartbeat.start()
    monkeypatch.undo()
    assert 1 == sum("progress.json is not renewed" in each.getMessage() for each in caplog.records)

    heartbeat.start()
    heartbeat.start()
    has_beaten = beats.acquire(timeout=10)
    heartbeat.stop()
    heartbeat.start()

    assert has_beaten
    assert "crashproof-heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_one_that_never_started_can_be_stopped(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    Heartbeat(lambda: None, interval_seconds=1.0).stop()


def test_a_beat_that_fails_for_hours_is_logged_once_and_its_recovery_too(caplog):
    beats = threading.Semaphore(0)
    trouble = threading.Event()
    trouble.set()

    def fail() -> None:
        beats.release()
        if trouble.is_set():
            raise ValueError("no space")

    heartbeat = Heartbeat(fail, interval_seconds=0.001)
    has_beaten = [beats.acquire(timeout=10) for _ in range(20)]
    trouble.clear()
    has_beaten += [beats.acquire(timeout=10) for _ in range(20)]
    heartbeat.stop()

    assert [True] * 40 == has_beaten
    failed, works = caplog.messages
    assert "Housekeeping failed; trying again every 0.001 s." == failed
    assert works.startswith("Housekeeping works again, after ")
