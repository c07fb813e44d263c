"""Every error a user can meet.

CrashproofError
├── RunError                 the run folder
│   ├── CannotStop           the process that writes the run cannot be stopped from here
│   ├── ConfigChanged        the config differs and the caller asked for an error
│   ├── NewerFormat          a file was written by a newer version
│   ├── NotARun              the folder holds no run
│   ├── UnknownRecord        an intact line of a kind that this version does not know
│   ├── RunClosed            the tracker was closed or replaced
│   └── RunInUse             another live process writes this run
├── StorageError             the disk or database under it
│   ├── DiskFull             no space is left
│   │   ├── FileSizeLimit    a file may not become larger
│   │   └── QuotaExceeded    the user's quota is used up
│   ├── FileUnreadable       a file of a run cannot be read
│   ├── FolderNotShared      the ranks of a run do not all write the same folder
│   ├── SavesFailed          no checkpoint can be saved, however often it is tried
│   ├── StorageUnwritable    read-only, or no permission
│   ├── StoreUnavailable     a shared store of answers is not available
│   └── TooManyOpenFiles     no more files can be opened
├── TeacherError             a teacher over HTTP
│   ├── AnswerUnusable       a paid answer cannot be used
│   │   └── AnswerIncomplete  it was cut off, filtered, or ended in an unknown way
│   ├── BudgetExhausted      the next request could cost more than is left
│   ├── TeacherClosed        it was closed before it answered
│   ├── TeacherRefused       the server rejected the request, and would again
│   └── TeacherUnreachable   no response after all attempts
├── CheckpointError          saved training state
│   ├── CheckpointDamaged    the requested one is torn, missing or altered
│   ├── CheckpointMismatch   it belongs to another model
│   ├── NothingToAdopt       a folder holds no intact checkpoint of other code
│   └── NoUsableCheckpoint   some were recorded, none is intact
│       └── RecordsLost      what was recorded cannot be read any more
├── InputError               what the user passed in
│   ├── AddressInUse         a server cannot listen at this address
│   ├── CommandNotStarted    a command to supervise cannot be run
│   ├── ConfigError          a config file or key
│   │   └── UnknownPrice     no price is known for a model
│   ├── DataError            a line of a data file
│   ├── InvalidMetric        a value that cannot be recorded as a metric
│   ├── ModelMismatch        teacher and student do not fit
│   ├── NotAFolder           a path that should name a folder
│   ├── OtherRun             a tracker's folder belongs to another run
│   ├── RecordTooLarge       a record that could not be read back
│   └── RequestError         a request that cannot be sent
├── BadStep                  the loss of a step is not finite, or a spike
├── RankFailed               another process of the run cannot go on
├── RankLost                 another process of the run died or stopped responding
├── RanksDisagree            the processes of a run were given different inputs, or take different samples
└── MissingExtra             an optional dependency is not installed, or too old
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "AddressInUse",
    "AnswerIncomplete",
    "AnswerUnusable",
    "BadStep",
    "BudgetExhausted",
    "CannotStop",
    "CheckpointDamaged",
    "CheckpointError",
    "CheckpointMismatch",
    "CommandNotStarted",
    "ConfigChanged",
    "ConfigError",
    "CrashproofError",
    "DataError",
    "DiskFull",
    "FileSizeLimit",
    "FileUnreadable",
    "FolderNotShared",
    "InputError",
    "InvalidMetric",
    "MissingExtra",
    "ModelMismatch",
    "NewerFormat",
    "NoUsableCheckpoint",
    "NotAFolder",
    "NotARun",
    "NothingToAdopt",
    "OtherRun",
    "QuotaExceeded",
    "RankFailed",
    "RankLost",
    "RanksDisagree",
    "RecordTooLarge",
    "RecordsLost",
    "RequestError",
    "RunClosed",
    "RunError",
    "RunInUse",
    "SavesFailed",
    "StorageError",
    "StorageUnwritable",
    "StoreUnavailable",
    "TeacherClosed",
    "TeacherError",
    "TeacherRefused",
    "TeacherUnreachable",
    "TooManyOpenFiles",
    "UnknownPrice",
    "UnknownRecord",
]

_EXIT_ERROR = 2
"""The exit code of an error that another start does not mend."""


class CrashproofError(Exception):
    """What happened and where, with a hint: what to do about it."""

    may_pass = False
    """Whether the same command may succeed at the next start, without any change."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        # By default it would be made again from its message, which most constructors here do not take.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[CrashproofError], args: tuple[object, ...], fields: Mapping[str, object]) -> CrashproofError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class RunError(CrashproofError):
    """Something about the run folder."""


class CannotStop(RunError):
    """The process that writes the run cannot be stopped from here."""

    def __init__(self, folder: Path, *, reason: str, hint: str) -> None:
        super().__init__(f"The run in {folder} cannot be stopped from here: {reason}.", hint=hint)


class ConfigChanged(RunError):
    """The config differs from the one this run began with."""

    def __init__(
        self,
        folder: Path,
        *,
        changed: Sequence[str],
        how_to_keep: str = 'on_config_change="continue"',
        how_to_start_over: str = 'pass on_config_change="archive" to begin a new session',
    ) -> None:
        super().__init__(
            f"The config of the run in {folder} has changed: {'; '.join(changed)}.",
            hint=f"Restore the old values, pass {how_to_keep} to keep the run, or {how_to_start_over}.",
        )
        self.changed = list(changed)


class NewerFormat(RunError):
    """A file was written by a version of crashproof newer than this one."""

    def __init__(self, path: Path | str, *, found: int, known: int) -> None:
        super().__init__(
            f"{path} has format version {found}; this crashproof reads up to version {known}.",
            hint="Upgrade crashproof. Nothing was changed.",
        )


class UnknownRecord(RunError):
    """A line is intact, and of a kind that this version does not know."""

    def __init__(self, path: Path | str, *, reason: str) -> None:
        super().__init__(
            f"{path} has an intact line of a kind that this crashproof does not know: {reason}.",
            hint="Upgrade crashproof. Nothing was changed.",
        )


class NotARun(RunError):
    """The folder holds no run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} holds no run: it has no progress/events.jsonl and no progress/metrics.jsonl.",
            hint="Pass the folder that was given as --output-dir.",
        )


class RunClosed(RunError):
    """The tracker no longer owns its run."""

    def __init__(self, folder: Path, *, why: str) -> None:
        super().__init__(
            f"The tracker of {folder} {why}; it accepts no more data.",
            hint="Use the tracker that was opened last, or open the run again.",
        )


class RunInUse(RunError):
    """Another live process writes this run."""

    def __init__(self, folder: Path, *, host: str, pid: int, details: str = "") -> None:
        super().__init__(
            f"{folder} is being written by process {pid} on {host}. {details}".rstrip(),
            hint="Wait for it, stop it, or use another output folder.",
        )
        self.host = host
        self.pid = pid


class StorageError(CrashproofError):
    """A disk or database refused an operation."""


class DiskFull(StorageError):
    """No space is left on the disk of the run, or it may not be used."""

    def __init__(
        self, path: Path, *, needed_bytes: int = 0, free_bytes: int | None = None, symptom: str = ""
    ) -> None:
        """`symptom` is what other code raised, where that does not name the disk itself."""
        needed = f" {needed_bytes:,} bytes were needed." if needed_bytes else ""
        free = "" if free_bytes is None else f" {free_bytes:,} bytes are free."
        raised = f" The code that wrote it raised {symptom}." if symptom else ""
        super().__init__(
            f"The disk is full: {path} could not be written.{needed}{free}{raised}",
            hint="Free space there, starting with old checkpoints, progress/set_aside/ and progress/archive/.",
        )


class FileSizeLimit(DiskFull):
    """A file may not become larger: a limit of the process or of the file system, whatever is free."""

    def __init__(self, path: Path, *, limit_bytes: int | None, needed_bytes: int = 0) -> None:
        """`limit_bytes` is the limit of this process; None where it has none."""
        needed = f" {needed_bytes:,} bytes were needed." if needed_bytes else ""
        if limit_bytes is None:
            reason = "the file system allows no file that large"
            hint = "Use another file system (FAT32 ends at 4 GiB), or write several smaller files."
        else:
            reason = f"this process may write files of at most {limit_bytes:,} bytes (RLIMIT_FSIZE)"
            hint = "Raise it with `ulimit -f unlimited`, or LimitFSIZE= of a service, and start again."
        CrashproofError.__init__(self, f"{path} could not be written: {reason}.{needed}", hint=hint)


class QuotaExceeded(DiskFull):
    """The user's quota is used up, whatever is free on the disk."""

    def __init__(self, path: Path, *, needed_bytes: int = 0) -> None:
        needed = f" {needed_bytes:,} bytes were needed." if needed_bytes else ""
        CrashproofError.__init__(
            self,
            f"The disk quota is used up: {path} could not be written.{needed}",
            hint="Free space that counts towards the quota (`quota -s` shows it), or have it raised.",
        )


class FileUnreadable(StorageError):
    """A file of a run cannot be read."""

    def __init__(self, path: Path | str, *, reason: str, hint: str = "") -> None:
        super().__init__(f"{path} cannot be read: {reason}.", hint=hint)
        self.path = Path(path)
        self.reason = reason


class FolderNotShared(StorageError):
    """The ranks of a run do not all see one folder, or some of them cannot write it."""

    def __init__(self, folder: Path, *, problems: Sequence[str], hints: Sequence[str]) -> None:
        """`problems` has a sentence for each rank that has one."""
        super().__init__(
            f"Not every rank can save checkpoints in {folder}: {' '.join(problems)}", hint=" ".join(hints)
        )


class SavesFailed(StorageError):
    """Checkpoints cannot be saved, however often it is tried, so the run stops."""

    def __init__(
        self, *, step: int, num_failed: int, error: Exception, saved_step: int | None, tried_seconds: float = 0.0
    ) -> None:
        """`step` could not be saved because of `error`; the newest checkpoint is that of `saved_step`, if any."""
        reason, hint = (error.message, error.hint) if isinstance(error, CrashproofError) else (f"{error}.", "")
        tries = f" after {tried_seconds:.0f} s of trying" if tried_seconds >= 1 else ""
        in_a_row = f" {num_failed:,} saves in a row have failed." if num_failed > 1 else ""
        if saved_step is None:
            lost, start = f"There is no checkpoint yet, so all {step:,} steps are lost.", "it begins at step 0"
        else:
            lost = f"The newest checkpoint is that of step {saved_step:,}, so {step - saved_step:,} steps are lost."
            start = f"it resumes at step {saved_step:,}"
        super().__init__(
            f"Step {step:,} could not be saved{tries}: {reason.rstrip('.')}.{in_a_row} {lost}",
            hint=f"{hint} Then start the same command again: {start}.".lstrip(),
        )
        self.num_failed = num_failed
        self.saved_step = saved_step


class StorageUnwritable(StorageError):
    """The folder cannot be written to."""

    def __init__(self, path: Path, *, reason: str) -> None:
        super().__init__(
            f"{path} cannot be written: {reason}.",
            hint="Choose another output folder, or change its permissions.",
        )


class StoreUnavailable(StorageError):
    """A shared store of answers cannot be reached, or refused a request."""

    def __init__(self, store: str, *, reason: str) -> None:
        super().__init__(
            f"The store {store} cannot be used: {reason}.",
            hint="Start the same command again once it is available; what was paid for is kept.",
        )


class TooManyOpenFiles(StorageError):
    """No more files can be opened."""

    def __init__(self, path: Path | str, *, limit: int | None) -> None:
        """`limit` is that of this process; None where it is the whole machine's that was reached."""
        if limit is None:
            reason = "all processes of this machine together have reached its limit of open files"
            hint = "Raise fs.file-max with sysctl, or end processes that hold many files open."
        else:
            reason = f"this process has reached its limit of {limit:,} open files (RLIMIT_NOFILE)"
            hint = "Raise it with `ulimit -n 65536` before the start, or use fewer data-loader workers."
        super().__init__(f"{path} could not be opened: {reason}.", hint=hint)


class TeacherError(CrashproofError):
    """Something about a teacher over HTTP."""


class AnswerUnusable(TeacherError):
    """A paid answer cannot be used."""

    _HINT = "It is kept, and not paid for again unless you request it."

    def __init__(self, key: str, *, problem: str) -> None:
        super().__init__(f"The answer to request {key[:12]} cannot be used: {problem}.", hint=self._HINT)
        self.key = key
        self.problem = problem


class AnswerIncomplete(AnswerUnusable):
    """A paid answer was cut off, filtered, or ended in an unknown way."""

    _HINT = (
        "It is kept. Use it as it is (--keep-truncated, teacher.keep_truncated, keeps_truncated=True), or raise "
        "max_tokens, which asks anew."
    )


class BudgetExhausted(TeacherError):
    """The next request could cost more than is left of the budget."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, hint="Raise the budget, or lower max_tokens; every answer so far is kept.")


class TeacherClosed(TeacherError):
    """The teacher was closed before it answered."""

    def __init__(self) -> None:
        super().__init__(
            "The teacher is closed; it sends no more requests.",
            hint="Create a new one; what was paid for is kept.",
        )


class TeacherRefused(TeacherError):
    """The server rejected a request, and would again."""

    def __init__(self, url: str, *, status: int, reason: str, hint: str = "", hits_all: bool = False) -> None:
        # The reason is the server's own sentence, or begins with its status.
        super().__init__(f"{url} refused the request: {reason.rstrip('.')}.", hint=hint)
        self.status = status
        self.hits_all = hits_all
        """Whether every other request would be refused for the same reason."""


class TeacherUnreachable(TeacherError):
    """No response came after all attempts."""

    may_pass = True

    def __init__(
        self,
        url: str,
        *,
        attempts: int,
        seconds: float,
        last: str,
        asked_to_wait: str = "",
        hits_all: bool = False,
        is_away: bool = False,
    ) -> None:
        tries = f"{attempts} attempt{'s' if attempts != 1 else ''}"
        wait = f" The server asks to wait {asked_to_wait}, longer than the deadline allows." if asked_to_wait else ""
        super().__init__(
            f"{url}: no response after {tries} over {seconds:.0f} s; last error: {last.rstrip('.')}.{wait}",
            hint=f"Start the same command again {f'in {asked_to_wait}' if wait else 'later'}; "
            "every answer so far is kept.",
        )
        self.hits_all = hits_all
        """Whether every other request would fare alike, at present."""
        self.is_away = is_away
        """Whether the last attempt found no connection: nothing was sent, whatever was asked."""


class CheckpointError(CrashproofError):
    """Something about saved training state."""


class CheckpointDamaged(CheckpointError):
    """The requested checkpoint cannot be used."""

    def __init__(self, path: Path, *, reason: str) -> None:
        super().__init__(
            f"The checkpoint {path} cannot be used: {reason}.",
            hint="Pass another one, or --resume auto for the newest intact one.",
        )


class CheckpointMismatch(CheckpointError):
    """The checkpoint belongs to another model."""

    def __init__(self, path: Path, *, reason: str) -> None:
        super().__init__(
            f"The checkpoint {path} does not fit this model: {reason}.",
            hint="Restore the config that it was trained with, or start in a new output folder.",
        )


class NoUsableCheckpoint(CheckpointError):
    """Checkpoints were recorded and none of them is intact."""

    def __init__(self, folder: Path, *, refused: Sequence[tuple[str, str]]) -> None:
        listing = "; ".join(f"{path}: {reason}" for path, reason in refused)
        super().__init__(
            f"No checkpoint of {folder} can be used. {listing}.",
            hint="Restore one from a backup, or start over in another output folder (--resume never).",
        )
        self.refused = list(refused)


class RecordsLost(NoUsableCheckpoint):
    """A run has been here, and its records of checkpoints cannot be read any more."""

    def __init__(self, folder: Path, *, found: Sequence[tuple[str, str]]) -> None:
        """`found` is what shows it: paths relative to the folder, each with what is wrong with it."""
        listing = "; ".join(f"{path}: {reason}" for path, reason in found)
        CheckpointError.__init__(
            self,
            f"{folder} has held a run whose records are lost, so it is unknown where it would resume. {listing}.",
            hint=f"Restore progress/ from a backup; or record the checkpoints that are there with `crashproof adopt "
            f"{folder}`; or start over with fresh=True (--resume never), which moves all of this to "
            "progress/archive/.",
        )
        self.refused = list(found)


class NothingToAdopt(CheckpointError):
    """A folder holds no checkpoint that could be adopted."""

    def __init__(self, folder: Path, *, reason: str, hint: str = "") -> None:
        super().__init__(f"{folder} has no checkpoint to adopt: {reason}.", hint=hint)


class InputError(CrashproofError):
    """Something that the user passed in."""


class AddressInUse(InputError):
    """A server cannot listen at the requested address."""

    def __init__(self, host: str, port: int, *, reason: str) -> None:
        super().__init__(
            f"Cannot listen on {host}, port {port}: {reason.lower()}.",
            hint="Pass another --port, or --port 0 for a free one.",
        )


class NotAFolder(InputError):
    """A path that should be a folder is none."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is not a folder.", hint="Pass the folder that the runs lie in.")


class OtherRun(InputError):
    """A tracker's folder belongs to another run."""

    def __init__(self, place: Path | str, *, found: str, wanted: str) -> None:
        super().__init__(
            f"{place} already holds another run ({found}, not {wanted}).",
            hint="Choose another destination, or an empty one.",
        )


class CommandNotStarted(InputError):
    """A command to supervise cannot be run."""

    def __init__(self, program: str, *, reason: str) -> None:
        super().__init__(f"{program} cannot be run: {reason}.", hint="Check the command that follows `--`.")


class ConfigError(InputError):
    """A config file or one of its keys cannot be used."""


class UnknownPrice(ConfigError):
    """The price table has no entry for a model."""

    def __init__(self, model: str, *, table: Path) -> None:
        super().__init__(
            f"{table} has no price for the model {model!r}.",
            hint=f"Copy that table, add `{model}: {{input: …, output: …}}` under `models:` in dollars per million "
            "tokens, and name the copy.",
        )
        self.model = model


class DataError(InputError):
    """A line of a data file cannot be used; in a file without lines it is a row, or a record."""

    def __init__(
        self, path: Path, reason: str, *, line: int | None = None, unit: str = "line", hint: str = ""
    ) -> None:
        where = f"{path}, {unit} {line}" if line is not None else f"{path}"
        super().__init__(f"{where}: {reason}.", hint=hint)
        self.path = path
        self.line = line


class InvalidMetric(InputError):
    """A value that cannot be recorded as a metric."""


class ModelMismatch(InputError):
    """Teacher and student do not fit together."""


class RecordTooLarge(InputError):
    """A record that could not be read back: too long, or nested too deeply. Nothing was written."""

    def __init__(self, path: Path, *, reason: str) -> None:
        super().__init__(
            f"A record for {path} {reason}; it could not be read back, so it is not written.",
            hint="Record a file's name instead of its content.",
        )


class RequestError(InputError):
    """A request that cannot be sent to any teacher."""


class BadStep(CrashproofError):
    """The loss of a step is not finite, or a spike."""

    def __init__(self, evidence: str, *, step: int, data: str, checkpoint: str | None, hint: str = "") -> None:
        """`evidence` is a sentence on the loss, `data` the samples of the step in words, `checkpoint` a path."""
        start = f"{evidence[:1].upper()}{evidence[1:]}"
        healthy = f"The newest healthy checkpoint is {checkpoint}" if checkpoint else "There is no healthy checkpoint"
        super().__init__(
            f"{start} It was computed from {data}. {healthy}.",
            hint=hint
            or "Go back to that checkpoint without these samples, lower the learning rate, or check the data.",
        )
        self.step = step
        self.checkpoint = checkpoint


class RankFailed(CrashproofError):
    """Another process of the run cannot go on, so this one does not either."""

    def __init__(self, rank: int, *, what: str, reason: str, exit_code: int) -> None:
        super().__init__(f"Rank {rank} failed while {what}: {reason}")
        self.rank = rank
        self.exit_code = exit_code
        """That of the other process: all end alike."""
        self.may_pass = exit_code != _EXIT_ERROR


class RankLost(CrashproofError):
    """Another process of the run died, or did not respond within the limit."""

    may_pass = True

    def __init__(self, what: str, *, missing: Sequence[int], seconds: float, reason: str, names: str = "") -> None:
        """`names` are the missing ranks in words, such as `rank 1 (host-b, pid 123)`; by default their numbers."""
        numbers = f"rank {', '.join(map(str, missing))}" if missing else "another rank"
        super().__init__(
            f"Lost {names or numbers} while {what} (limit {seconds:g} s): {reason.rstrip('.')}.",
            hint="Check its last output, then start the same command again; acknowledged data is kept.",
        )
        self.missing = list(missing)


class RanksDisagree(CrashproofError):
    """The processes of a run were given different inputs, or take different samples: no model would be that of one
    config.
    """


class MissingExtra(CrashproofError, ImportError):
    """An optional dependency is not installed, or too old."""

    def __init__(self, extra: str, *, install: str, problem: str = "") -> None:
        super().__init__(
            f"The optional dependency '{extra}' is {f'outdated: {problem}' if problem else 'not installed'}.",
            hint=f"Run: {install}",
        )
