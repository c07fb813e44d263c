"""The machine a figure belongs to."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

__all__ = ["commit", "cpu_model", "machine_lines", "version_of"]

_PACKAGES = ("msgspec", "orjson", "torch")


def machine_lines(work: Path) -> list[str]:
    """Machine, versions, commit and date, one line each; `work` lies where the benchmarks write."""
    memory_gib = psutil.virtual_memory().total / (1 << 30)
    packages = ", ".join(f"{name} {version_of(name)}" for name in _PACKAGES)
    return [
        f"- CPU: {cpu_model()}, {os.cpu_count()} cores; {memory_gib:.0f} GiB memory",
        f"- Disk: {_file_system(work)}, {shutil.disk_usage(work).free / (1 << 30):.0f} GiB free",
        f"- {platform.python_implementation()} {platform.python_version()}, {packages}",
        f"- {platform.system()} {platform.release()}",
        f"- Commit: {commit()}",
        f"- Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    ]


def version_of(package: str) -> str:
    """The version of a package, or that it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _file_system(path: Path) -> str:
    around = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    innermost = max(around, key=lambda part: len(part.mountpoint), default=None)
    return f"{innermost.fstype} on {innermost.device}" if innermost else "unknown file system"


def commit() -> str:
    """The commit of the sources, and whether they were changed since."""
    head = _git("rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "src")
    return f"{head} (with uncommitted changes in src)" if changed else head


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return found.stdout.strip()
