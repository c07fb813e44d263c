from __future__ import annotations

import socket
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

pytest.importorskip("starlette")

from crashproof.dashboard.connections import Connections
from crashproof.dashboard.limits import Limits

LIMITS = replace(Limits.for_descriptors(1024), seconds_per_request=0.4, seconds_without_reading=0.4)
HALF = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: "


@contextmanager
def connected(served, *, sends: bytes = b""):
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(sends)
        yield client


def is_dropped(client: socket.socket) -> bool:
    """Whether the server closes a connection, within the time limit of the socket."""
    try:
        while client.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


class Client:
    """A connection as the registry sees it."""

    def __init__(self, address: str, waits_since: float | None) -> None:
        self.address = address
        self.waits_since = waits_since
        self.is_dropped = False

    def drop(self) -> None:
        self.is_dropped = True


def dropped(*clients: Client, limits: Limits) -> list[int]:
    connections = Connections(limits)
    for client in clients:
        connections.add(client)  # type: ignore[arg-type]
    return [number for number, client in enumerate(clients) if client.is_dropped]


@pytest.mark.parametrize("descriptors, connections", [(0, 16), (64, 16), (256, 96), (1024, 256), (1_000_000, 256)])
def test_a_part_of_the_descriptors_is_left_for_files(descriptors, connections):
    limits = Limits.for_descriptors(descriptors)

    assert (connections, connections // 2) == (limits.most_connections, limits.most_streams)


@pytest.mark.parametrize(
    "waits_since, expected",
    [
        pytest.param([3.0, 1.0, 2.0, 4.0], [1], id="the-one-that-has-waited-longest"),
        pytest.param([None, 1.0, None, 4.0], [1], id="none-at-work"),
        pytest.param([None, None, None, 4.0], [3], id="the-new-one-if-all-others-are-at-work"),
        pytest.param([3.0, 1.0, 2.0], [], id="nobody-if-there-is-room"),
    ],
)
def test_a_connection_too_many_takes_the_place_of_one_that_waits(waits_since, expected):
    limits = replace(LIMITS, most_connections=3)

    assert expected == dropped(*(Client("127.0.0.1", each) for each in waits_since), limits=limits)


def test_an_address_of_another_machine_has_a_share_and_loopback_all():
    limits = replace(LIMITS, most_connections=9, most_connections_per_address=2)
    far = [Client("192.0.2.1", float(each)) for each in range(3)]
    near = [Client("127.0.0.1", float(each)) for each in range(3)]

    assert ([0], []) == (dropped(*far, limits=limits), dropped(*near, Client("192.0.2.2", 0.0), limits=limits))


@pytest.mark.parametrize("sends", [b"", HALF], ids=["nothing", "half-a-request"])
def test_a_client_that_sends_no_request_is_dropped_in_time(serve, sends):
    with connected(serve(limits=LIMITS), sends=sends) as client:
        assert is_dropped(client)


def test_a_client_that_sends_a_byte_now_and_then_is_dropped_in_time(serve):
    with connected(serve(limits=LIMITS), sends=HALF) as client, pytest.raises(OSError):
        for _ in range(200):
            time.sleep(0.05)
            client.sendall(b"x")


def test_a_client_that_ended_one_request_must_end_the_next_in_time_too(serve):
    with connected(serve(limits=LIMITS), sends=b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + HALF) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert is_dropped(client)


def test_a_client_that_takes_none_of_its_responses_is_dropped_in_time(serve):
    served = serve(limits=LIMITS)
    with connected(served) as client:
        client.settimeout(0.5)
        with pytest.raises(OSError):
            for _ in range(40):
                client.sendall(b"GET /uplot.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200)
                time.sleep(0.1)
    assert 200 == served.get("/").status


def test_a_client_that_reads_slowly_gets_all_of_its_response(serve, open_tracker, tmp_path):
    open_tracker(output_dir=tmp_path / "run", config={"long": ["x" * 1000] * 3000})
    served = serve(limits=replace(LIMITS, seconds_per_request=0.2, seconds_without_reading=0.2))
    request = b"GET /api/run?name=run HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with connected(served, sends=request) as client:
        received = b""
        while content := client.recv(1 << 15):
            received += content
            time.sleep(0.005)

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.lower().split(b"content-length: ")[1].split(b"\r\n")[0] == str(len(body)).encode()


def test_many_idle_clients_keep_nobody_out(serve):
    served = serve(limits=replace(LIMITS, most_connections=8, seconds_per_request=60.0))
    with ExitStack() as clients:
        for _ in range(40):
            clients.enter_context(connected(served, sends=HALF))
        assert 200 == served.get("/").status
    assert 200 == served.get("/").status


def test_headers_that_are_too_long_are_refused(serve):
    with connected(serve(), sends=HALF + b"x" * 100_000) as client:
        assert is_dropped(client)
