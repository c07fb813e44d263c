"""Quarantine damage and rebuild the snapshots."""

from __future__ import annotations

from crashproof.cli.arguments import AsJson, Folder
from crashproof.cli.output import print_json, say
from crashproof.errors import RunInUse
from crashproof.reading.run_reader import RunReader
from crashproof.tracking.repair import repair_run

__all__ = ["repair"]


def repair(folder: Folder, as_json: AsJson = False) -> None:
    """Quarantine damaged journal records and checkpoints, and rebuild every snapshot from the journals.

    Deletes nothing. Refuses while a process writes the run.

    Example: crashproof repair runs/quickstart
    """
    reader = RunReader.open(folder)
    holder = reader.holder()
    if holder is not None:
        raise RunInUse(folder, host=holder.host, pid=holder.pid)
    repairs = repair_run(reader.folder)
    if as_json:
        print_json({"set_aside": repairs, "set_aside_folder": str(reader.folder.quarantine)})
        return
    for each in repairs:
        say(f"  {each}")
    quarantined = f"{len(repairs)} damaged item(s) quarantined in {reader.folder.quarantine}"
    say(f"{folder}: {quarantined if repairs else 'no damage found'}; snapshots rebuilt.")
