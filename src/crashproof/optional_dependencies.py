"""Check for optional packages and their versions."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from crashproof.errors import MissingExtra

__all__ = ["install_line", "install_line_for", "is_installed", "missing_extra", "require_modules", "require_versions"]


class _DirInfo(msgspec.Struct, frozen=True):
    editable: bool = False


class _VcsInfo(msgspec.Struct, frozen=True):
    vcs: str
    commit_id: str


class _DirectUrl(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    subdirectory: str = ""
    dir_info: _DirInfo | None = None
    vcs_info: _VcsInfo | None = None


def is_installed(package: str) -> bool:
    """Whether a package is installed, in any version."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def require_modules(extra: str, *modules: str) -> None:
    """Require that each module can be found; imports none of them.

    Raises:
        MissingExtra: one cannot be found.
    """
    if any(find_spec(module) is None for module in modules):
        raise missing_extra(extra)


def require_versions(extra: str, lowest: Mapping[str, str]) -> None:
    """Require each package in at least the version named for it.

    Raises:
        MissingExtra: one is not installed, or older.
    """
    for package, wanted in lowest.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            raise missing_extra(extra) from None
        if _major_and_minor(found) < _major_and_minor(wanted):
            raise missing_extra(extra, problem=f"it needs {package} {wanted} or later, and {found} is installed")


def missing_extra(extra: str, *, problem: str = "") -> MissingExtra:
    """The error for an extra that is missing, with the line that installs it here."""
    return MissingExtra(extra, install=install_line(extra), problem=problem)


def install_line(extra: str) -> str:
    """The command that adds an extra to crashproof as it is installed here."""
    try:
        direct_url = distribution("crashproof").read_text("direct_url.json")
    except PackageNotFoundError:
        direct_url = _checkout()
    return install_line_for(extra, direct_url)


def install_line_for(extra: str, direct_url: str | None) -> str:
    """The command that adds an extra to crashproof as it was installed.

    Args:
        extra: Its name.
        direct_url: The content of `direct_url.json` (PEP 610); None if crashproof comes from an index.
    """
    try:
        origin = msgspec.json.decode(direct_url or "", type=_DirectUrl)
    except msgspec.DecodeError:
        return f"pip install {shlex.quote(f'crashproof[{extra}]')}"
    if origin.dir_info is not None:
        option = "-e " if origin.dir_info.editable else ""
        return f"pip install {option}{shlex.quote(f'{unquote(urlsplit(origin.url).path)}[{extra}]')}"
    url = _without_credentials(origin.url)
    if origin.vcs_info is not None:
        # The commit that is installed, so that only the extra is added.
        url = f"{origin.vcs_info.vcs}+{url}@{origin.vcs_info.commit_id}"
    if origin.subdirectory:
        url = f"{url}#subdirectory={origin.subdirectory}"
    return f"pip install {shlex.quote(f'crashproof[{extra}] @ {url}')}"


def _checkout() -> str | None:
    """What `direct_url.json` would be for sources that are imported without being installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        return None
    return json.dumps({"url": root.as_uri(), "dir_info": {"editable": True}})


def _without_credentials(url: str) -> str:
    """A URL without user, password, query and fragment: each may hold a token. `git@` names no one."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"git@{host}" if user == "git" else host, query="", fragment="").geturl()


def _major_and_minor(version_name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version_name)[:2])
