from __future__ import annotations

import pytest
from metadata_server import metadata_server

from crashproof.errors import ConfigError
from crashproof.supervisor.announcements import read_aws, read_gcp
from crashproof.supervisor.metadata import Aws, Google, MetadataPoller, provider_named, this_provider

NOON = 1_796_126_400.0


@pytest.mark.parametrize(
    "body, expected",
    [
        pytest.param('{"action": "terminate", "time": "2026-12-01T12:02:00Z"}', 120.0, id="in-two-minutes"),
        pytest.param('{"action": "stop", "time": "2026-12-01T11:00:00Z"}', 0.0, id="past"),
        pytest.param('{"action": "stop"}', 120.0, id="without-a-moment"),
        pytest.param("<html>", 120.0, id="not-JSON"),
        pytest.param("[]", 120.0, id="another-form"),
    ],
)
def test_the_time_that_aws_leaves(body, expected):
    assert expected == read_aws(body, now=NOON).seconds_left


@pytest.mark.parametrize("body, expected", [("TRUE\n", 30.0), ("FALSE", None), ("", None)])
def test_the_time_that_google_leaves(body, expected):
    found = read_gcp(body)

    assert expected == (None if found is None else found.seconds_left)


@pytest.mark.parametrize("kind", [Aws, Google])
def test_an_announcement_is_found_once_there_is_one(kind):
    with metadata_server() as metadata:
        provider = kind(metadata.url)
        before = provider.look()
        metadata.announce(60)
        after = provider.look()

    assert before is None
    assert after is not None


def test_an_expired_token_is_replaced():
    with metadata_server() as metadata:
        provider = Aws(metadata.url)
        provider.look()
        metadata.expire_token()
        metadata.announce(60)

        assert provider.look() is not None


def test_an_address_that_does_not_answer_is_told_once():
    said: list[str] = []
    calls: list[int] = []

    class Silent:
        def look(self):
            calls.append(1)
            raise OSError("no route")

    MetadataPoller(Silent(), say=said.append, seconds=0.001)
    while len(calls) < 5:
        pass

    assert ["the metadata address does not answer (no route); asking on."] == said


def test_what_is_announced_is_taken_once():
    with metadata_server() as metadata:
        metadata.announce(60)
        poller = MetadataPoller(Google(metadata.url), say=print, seconds=0.01)
        while (found := poller.take()) is None:
            pass

        assert 29.0 < found.seconds_left <= 30.0
        assert poller.take() is None


@pytest.mark.parametrize(
    "text, kind", [("aws", Aws), ("gcp=http://127.0.0.1:1", Google), ("off", type(None))], ids=["aws", "gcp", "off"]
)
def test_a_provider_is_chosen_by_name(text, kind):
    assert kind is type(provider_named(text))


def test_an_unknown_provider_is_an_error():
    with pytest.raises(ConfigError, match="names no cloud"):
        provider_named("azure")


@pytest.mark.parametrize(
    "vendor, kind", [("Amazon EC2\n", Aws), ("Google\n", Google), ("QEMU\n", type(None))], ids=["aws", "gcp", "other"]
)
def test_the_firmware_tells_the_provider(vendor, kind, tmp_path):
    (tmp_path / "vendor").write_text(vendor)

    assert kind is type(this_provider(tmp_path / "vendor"))


def test_without_firmware_there_is_no_provider(tmp_path):
    assert this_provider(tmp_path / "vendor") is None


def test_only_http_is_asked():
    with pytest.raises(OSError, match="not an address of HTTP"):
        Google("file:///etc").look()
