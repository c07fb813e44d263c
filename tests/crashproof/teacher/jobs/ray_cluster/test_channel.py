"""Objects between two processes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from crashproof.teacher.jobs.ray_cluster.channel import Channel


def between(talk: Callable[[Channel, Channel], Awaitable[None]]) -> None:
    async def run() -> None:
        one, other = [await Channel.over(end) for end in socket.socketpair()]
        try:
            await asyncio.wait_for(talk(one, other), 20)
        finally:
            await one.close()
            await other.close()

    asyncio.run(run())


def test_objects_arrive_in_order_and_whole() -> None:
    async def talk(one: Channel, other: Channel) -> None:
        sent = ["small", b"large" * 500_000, {"a": [1, 2]}]
        for each in sent:
            one.write(each)
        assert sent == [await other.read() for _ in sent]

    between(talk)


def test_the_end_of_the_other_is_none_also_within_an_object() -> None:
    async def talk(one: Channel, other: Channel) -> None:
        one.write("last")
        await one.close()
        assert ["last", None, None] == [await other.read() for _ in range(3)]

    between(talk)


def test_what_nobody_reads_any_more_is_dropped() -> None:
    async def talk(one: Channel, other: Channel) -> None:
        await other.close()
        for _ in range(3):
            one.write(b"x" * 1_000_000)
            await one.drain()
            await asyncio.sleep(0.01)

    between(talk)
