"""What outlives a supervisor that is killed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from crashproof.disk.supervision.private_folder import PrivateFolder, read_if_there
from crashproof.errors import CrashproofError
from crashproof.records.events import CheckpointSuspected, ProcessEnded
from crashproof.rules.supervision.restarts import Life
from crashproof.supervisor.processes import status_of
from crashproof.tracking.supervised.link import FOLDER_VARIABLE

__all__ = ["KnownChild", "SupervisorState", "claim_folder", "load_state", "save_state", "supervisor_of"]

_FILE = "state.json"
_OWN_PLACE = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID"),
)
"""Variables that tell the tasks of one job apart."""


class KnownChild(msgspec.Struct, frozen=True, kw_only=True):
    """The process that was started last."""

    pid: int
    start_ticks: int | None
    started_at: float
    """Seconds since 1970."""
    verified_before: int | None


class SupervisorState(msgspec.Struct, kw_only=True):
    """Written before and after each life."""

    boot_id: str
    pid: int
    """Of the supervisor."""
    child: KnownChild | None = None
    """None between two lives."""
    progress: str | None = None
    """The progress folder of its run, where that is known."""
    lives: list[Life] = msgspec.field(default_factory=list)
    suspects: list[CheckpointSuspected] = msgspec.field(default_factory=list)
    """Those that were found since there was progress."""
    unrecorded: list[ProcessEnded | CheckpointSuspected] = msgspec.field(default_factory=list)
    """What could not be recorded in the run yet."""


def claim_folder(command: Sequence[str], run: Path | None, environment: Mapping[str, str]) -> PrivateFolder:
    """The private folder for this command in this working folder; that of a killed supervisor is taken over.

    Raises:
        StorageUnwritable: the system's folder for temporary files cannot be used.
    """
    place = {name: environment[name] for name in _OWN_PLACE if name in environment}
    identity = [list(command), os.path.abspath("."), None if run is None else os.path.abspath(run), place]
    name = hashlib.sha256(json.dumps(identity).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return PrivateFolder.claim(Path(tempfile.gettempdir()) / f"crashproof-{os.geteuid()}", name)


def load_state(folder: PrivateFolder, boot_id: str) -> SupervisorState | None:
    """What a killed supervisor has left in this boot of the machine; None if there is nothing."""
    content = folder.read(_FILE)
    if content is None:
        return None
    try:
        state = msgspec.json.decode(content, type=SupervisorState)
    except msgspec.DecodeError:
        return None
    return state if state.boot_id == boot_id else None


def supervisor_of(pid: int) -> int | None:
    """The supervisor of a live process, by the folder in its environment; None if it has none that lives."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    named = [each.partition(b"=")[2] for each in variables if each.startswith(f"{FOLDER_VARIABLE}=".encode())]
    content = read_if_there(Path(os.fsdecode(named[0])) / _FILE) if named else None
    if content is None:
        return None
    try:
        state = msgspec.json.decode(content, type=SupervisorState)
    except msgspec.DecodeError:
        return None
    return state.pid if status_of(state.pid) is not None else None


def save_state(folder: PrivateFolder, state: SupervisorState) -> str:
    """Keep the state; return what went wrong, as a supervisor goes on without it."""
    try:
        folder.write(_FILE, msgspec.json.encode(state))
    except (CrashproofError, OSError) as error:
        return str(error)
    return ""
