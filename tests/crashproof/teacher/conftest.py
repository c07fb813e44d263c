"""Stores of teacher answers of every kind, each where nobody else is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from postgres import PostgresServer, postgres_server
from response_stores import PostgresBed, RunBed, SqlBed, SqliteBed, StoreBed


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a process."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["run", "sqlite", "postgresql"])
def new_bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], StoreBed]]:
    """Makes places for stores of one kind."""
    numbers = itertools.count()

    def make() -> StoreBed:
        if request.param == "postgresql":
            bed: StoreBed = PostgresBed(request.getfixturevalue("postgres"))
        else:
            folder = tmp_path / f"store_{next(numbers)}"
            bed = RunBed(folder) if request.param == "run" else SqliteBed(folder)
        beds.callback(bed.close)
        return bed

    with ExitStack() as beds:
        yield make


@pytest.fixture
def bed(new_bed: Callable[[], StoreBed]) -> StoreBed:
    """A place for a store of each kind."""
    return new_bed()


@pytest.fixture
def store(bed: StoreBed):
    """A new store of each kind."""
    return bed.open()


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlBed]:
    """A place for a store that many processes share, of each kind."""
    is_file = request.param == "sqlite"
    bed = SqliteBed(tmp_path / "store") if is_file else PostgresBed(request.getfixturevalue("postgres"))
    yield bed
    bed.close()


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[SqliteBed]:
    """A place for a store in a file."""
    bed = SqliteBed(tmp_path / "store")
    yield bed
    bed.close()


@pytest.fixture
def server_store(postgres: PostgresServer) -> Iterator[PostgresBed]:
    """A place for a store on a server."""
    bed = PostgresBed(postgres)
    yield bed
    bed.close()
