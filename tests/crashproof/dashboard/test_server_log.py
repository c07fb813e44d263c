from __future__ import annotations

import io
import logging

import pytest

from crashproof.testing import FakeClock

pytest.importorskip("starlette")

from crashproof.dashboard.server_log import LimitedHandler, limited_log


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def log(stream):
    """A logger, and the clock and the handler of its log."""
    clock = FakeClock()
    logger = logging.Logger("test")
    handler = LimitedHandler(stream, steady=clock.steady)
    logger.addHandler(handler)
    return logger, clock, handler


def test_the_same_message_is_written_once_a_minute_and_counted(log, stream):
    logger, clock, _ = log
    for _ in range(1000):
        logger.warning("full: %s", "a")
    logger.warning("full: b")
    before = stream.getvalue()
    clock.advance(seconds=61)
    logger.warning("full: a")

    assert "crashproof: full: a\ncrashproof: full: b\n" == before
    assert "crashproof: full: a (999 more times)\ncrashproof: full: a\n" == stream.getvalue().removeprefix(before)


def test_many_different_messages_are_cut_and_counted(log, stream):
    logger, _, handler = log
    for number in range(1000):
        logger.warning("message %d", number)
    handler.report()

    lines = stream.getvalue().splitlines()
    assert (51, "crashproof: 950 other messages were not logged: too many in one minute.") == (len(lines), lines[-1])


def test_an_exception_is_one_line_with_its_place(log, stream):
    logger, _, _ = log
    try:
        raise ValueError("odd\nvalue")
    except ValueError:
        logger.exception("Exception in ASGI application\n")

    assert stream.getvalue().startswith(
        "crashproof: Exception in ASGI application: ValueError: odd\\nvalue (test_server_log.py, line "
    )
    assert 1 == stream.getvalue().count("\n")


def test_control_characters_and_long_texts_of_a_request_reach_no_terminal(log, stream):
    logger, _, _ = log
    logger.warning("A request for %s", "/\x1b[2J\udce9" + "x" * 10_000)

    assert stream.getvalue().startswith("crashproof: A request for /\\x1b[2J\\udce9xxx")
    assert len(stream.getvalue()) < 1100


def test_a_log_that_nobody_reads_ends_nothing(log, stream):
    logger, _, _ = log
    stream.close()

    logger.warning("lost")


def test_the_log_of_all_libraries_is_limited_while_the_server_runs(stream):
    with limited_log(stream):
        for _ in range(10):
            logging.getLogger("asyncio").error("socket.accept() out of system resource")

    assert (
        "crashproof: socket.accept() out of system resource\n"
        "crashproof: socket.accept() out of system resource (9 more times)\n"
    ) == stream.getvalue()
