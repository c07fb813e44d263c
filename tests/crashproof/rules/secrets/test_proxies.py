from __future__ import annotations

import pytest

from crashproof.rules.secrets.proxies import is_loopback, proxy_of, reads_requests

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.8.9.10", "127.1", "localhost", "LOCALHOST", "localhost.", "api.localhost", "::1", "[::1]",
     "0.0.0.0", "::", "::ffff:127.0.0.1", "::1%lo", "2130706433", "0x7f000001", "0:0:0:0:0:0:0:1"],
)  # fmt: skip
def test_this_machine_is_reached_without_a_proxy(host):
    assert is_loopback(host)
    if "%" not in host:
        url = f"http://[{host.strip('[]')}]:1/v1" if ":" in host else f"http://{host}:1/v1"
        assert proxy_of(url, {"http": PROXY, "https": PROXY, "all": PROXY}) is None


@pytest.mark.parametrize(
    "host", ["128.0.0.1", "10.0.0.1", "localhost.example", "127.example", "fe80::1", "::ffff:10.0.0.1", "", "127001"]
)
def test_another_machine_is_none(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "url, proxies, expected",
    [
        ("http://host/v1", {}, None),
        ("http://host/v1", {"http": PROXY}, PROXY),
        ("https://host/v1", {"http": PROXY}, None),
        ("https://host/v1", {"all": PROXY}, PROXY),
        ("http://host/v1", {"http": "proxy:1"}, "http://proxy:1"),
        ("http://host/v1", {"http": ""}, None),
        ("http://host/v1", {"http": PROXY, "no": "*"}, None),
        ("http://host/v1", {"http": PROXY, "no": "other, host"}, None),
        ("http://a.host/v1", {"http": PROXY, "no": "host"}, None),
        ("http://a.host/v1", {"http": PROXY, "no": ".host"}, None),
        ("http://a.host/v1", {"http": PROXY, "no": "*.host"}, None),
        ("http://ahost/v1", {"http": PROXY, "no": "host,,*."}, PROXY),
        ("http://host:8000/v1", {"http": PROXY, "no": "host:8000"}, None),
        ("http://host:8001/v1", {"http": PROXY, "no": "host:8000"}, PROXY),
        ("http://HOST/v1", {"http": PROXY, "no": "http://host"}, None),
        ("http://10.1.2.3/v1", {"http": PROXY, "no": "10.0.0.0/8"}, None),
        ("http://11.1.2.3/v1", {"http": PROXY, "no": "10.0.0.0/8"}, PROXY),
        ("http://[fd00::1]:8000/v1", {"http": PROXY, "no": "[fd00::1]"}, None),
    ],
)  # fmt: skip
def test_which_proxy_a_request_goes_through(url, proxies, expected):
    assert expected == proxy_of(url, proxies)


@pytest.mark.parametrize(
    "url, proxy, expected",
    [("http://host/", PROXY, True), ("https://host/", PROXY, False), ("http://host/", None, False)],
)
def test_a_proxy_reads_what_is_not_encrypted(url, proxy, expected):
    assert expected is reads_requests(url, proxy)
