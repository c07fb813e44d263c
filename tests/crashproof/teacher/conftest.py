"""Fixtures for every kind of answer store, isolated from each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from postgres import PostgresServer, postgres_server
from response_stores import PostgresFixture, RunStoreFixture, SqliteFixture, SqlStoreFixture, StoreFixture


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a process."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["run", "sqlite", "postgresql"])
def new_stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], StoreFixture]]:
    """Make fixtures for stores of one kind."""
    numbers = itertools.count()

    def make() -> StoreFixture:
        if request.param == "postgresql":
            stores: StoreFixture = PostgresFixture(request.getfixturevalue("postgres"))
        else:
            folder = tmp_path / f"store_{next(numbers)}"
            stores = RunStoreFixture(folder) if request.param == "run" else SqliteFixture(folder)
        fixtures.callback(stores.close)
        return stores

    with ExitStack() as fixtures:
        yield make


@pytest.fixture
def stores(new_stores: Callable[[], StoreFixture]) -> StoreFixture:
    """A fixture for a store of each kind."""
    return new_stores()


@pytest.fixture
def store(stores: StoreFixture):
    """A new store of each kind."""
    return stores.open()


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStoreFixture]:
    """A fixture for a shared store of each kind."""
    is_file = request.param == "sqlite"
    stores = SqliteFixture(tmp_path / "store") if is_file else PostgresFixture(request.getfixturevalue("postgres"))
    with closing(stores):
        yield stores


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[SqliteFixture]:
    """A fixture for a store in a SQLite file."""
    with closing(SqliteFixture(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def server_store(postgres: PostgresServer) -> Iterator[PostgresFixture]:
    """A fixture for a store on a PostgreSQL server."""
    with closing(PostgresFixture(postgres)) as opened:
        yield opened
