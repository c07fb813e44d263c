"""Ask a cloud's metadata address whether the machine is about to be taken away."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

from crashproof.errors import ConfigError
from crashproof.supervisor.announcements import Announcement, read_aws, read_gcp
from crashproof.threads import try_to_start

__all__ = ["PROVIDERS", "Aws", "Google", "MetadataPoller", "Provider", "provider_named", "this_provider"]

_POLL_SECONDS = 5.0
_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 4096
_TOKEN_SECONDS = 300
_VENDOR = Path("/sys/class/dmi/id/sys_vendor")


class Provider(Protocol):
    """A cloud that announces preemption."""

    def look(self) -> Announcement | None:
        """Ask once; None if nothing is announced.

        Raises:
            OSError: the address does not answer.
        """
        ...


class Aws:
    """Spot instances of Amazon EC2, by version 2 of their metadata service."""

    def __init__(self, base_url: str = "http://169.254.169.254", *, now: Callable[[], float] = time.time) -> None:
        self._base_url, self._now = base_url.rstrip("/"), now
        self._token = ""

    def look(self) -> Announcement | None:
        """See `Provider`."""
        for _ in range(2):
            if not self._token:
                lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                self._token = _ask(f"{self._base_url}/latest/api/token", lifetime, method="PUT")
            try:
                body = _ask(
                    f"{self._base_url}/latest/meta-data/spot/instance-action",
                    {"X-aws-ec2-metadata-token": self._token},
                )
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401:
                    raise
                # The token has expired.
                self._token = ""
            else:
                return read_aws(body, now=self._now())
        return None


class Google:
    """Preemptible and spot machines of Google Compute Engine."""

    def __init__(self, base_url: str = "http://metadata.google.internal") -> None:
        self._url = f"{base_url.rstrip('/')}/computeMetadata/v1/instance/preempted"

    def look(self) -> Announcement | None:
        """See `Provider`."""
        return read_gcp(_ask(self._url, {"Metadata-Flavor": "Google"}))


PROVIDERS: Mapping[str, Callable[..., Provider]] = {"aws": Aws, "gcp": Google}
"""By the name that `--notices` takes."""


class MetadataPoller:
    """Asks every few seconds in a thread, until something is announced."""

    def __init__(self, provider: Provider, *, say: Callable[[str], None], seconds: float = _POLL_SECONDS) -> None:
        self._provider, self._say, self._seconds = provider, say, seconds
        self._found: SimpleQueue[tuple[Announcement, float]] = SimpleQueue()
        if not try_to_start(threading.Thread(target=self._poll, name="crashproof-notices", daemon=True)):
            say("no thread can be started, so notices of preemption are not asked for.")

    def take(self) -> Announcement | None:
        """What was announced and nobody has taken yet, with the time that is left by now."""
        try:
            found, at = self._found.get_nowait()
        except Empty:
            return None
        passed = time.monotonic() - at
        return Announcement(what=found.what, seconds_left=max(0.0, found.seconds_left - passed))

    def _poll(self) -> None:
        has_failed = False
        while True:
            try:
                found = self._provider.look()
            except OSError as error:
                if not has_failed:
                    self._say(f"the metadata address does not answer ({error}); asking on.")
                has_failed, found = True, None
            else:
                has_failed = False
            if found is not None:
                self._found.put((found, time.monotonic()))
                return
            time.sleep(self._seconds)


def provider_named(text: str) -> Provider | None:
    """The provider that `--notices` names: `aws`, `gcp`, either with `=ADDRESS`, `auto` or `off`.

    Raises:
        ConfigError: there is none of that name.
    """
    name, _, address = text.partition("=")
    if name == "auto" and not address:
        return this_provider()
    if name == "off" and not address:
        return None
    if name not in PROVIDERS:
        raise ConfigError(f"--notices {text!r} names no cloud.", hint="Pass auto, off, aws, gcp, or aws=ADDRESS.")
    return PROVIDERS[name](address) if address else PROVIDERS[name]()


def this_provider(vendor: Path = _VENDOR) -> Provider | None:
    """The provider of this machine, as its firmware names it."""
    try:
        name = vendor.read_text()
    except OSError:
        return None
    return Aws() if "Amazon EC2" in name else Google() if "Google" in name else None


def _ask(url: str, headers: Mapping[str, str], *, method: str = "GET") -> str:
    """The body of an answer; never by a proxy: the address is the machine's own."""
    if not url.startswith(("http://", "https://")):
        raise OSError(f"{url} is not an address of HTTP")
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310 - checked above
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
        body: bytes = answer.read(_MOST_BYTES)
    return body.decode("utf-8", "replace")
