from __future__ import annotations

import asyncio
import socket

import pytest

pytest.importorskip("starlette")

from crashproof.dashboard.access import SECURITY_HEADERS, Access, AccessGuard, is_loopback
from crashproof.errors import ConfigError
from crashproof.records.lines.codec import encode

TOKEN = "a-token-of-some-length"
ELSEWHERE = Access.for_address("0.0.0.0", token=TOKEN, more_names=["runs.example.org"])


@pytest.fixture
def guarded(serve):
    return serve(access=ELSEWHERE)


@pytest.fixture
def local(serve):
    return serve(access=Access.for_address("127.0.0.1", token=None, requires_token=False))


def enter(served, **headers: str) -> str:
    """Log in as the printed address does; the cookie."""
    return served.get(f"/?token={TOKEN}", **headers).headers["set-cookie"].partition(";")[0]


@pytest.mark.parametrize(
    "host, expected",
    [
        *(("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("LocalHost", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False)),
    ],
)
def test_loopback_is_known(host, expected):
    assert expected is is_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
def test_a_token_is_generated_on_loopback_too_and_differs_at_each_start(host):
    tokens = {Access.for_address(host, token=None).token for _ in range(3)}

    assert 3 == len(tokens)
    assert min(len(token) for token in tokens) >= 43


def test_no_token_is_for_loopback_alone_and_contradicts_a_given_one():
    assert Access.for_address("127.0.0.1", token=None, requires_token=False).token is None
    with pytest.raises(ConfigError, match="--no-token is for loopback alone"):
        Access.for_address("0.0.0.0", token=None, requires_token=False)
    with pytest.raises(ConfigError, match="--no-token contradicts CRASHPROOF_TOKEN"):
        Access.for_address("127.0.0.1", token=TOKEN, requires_token=False)


@pytest.mark.parametrize("token", ["short", "", "ünïcödé-of-some-length"])
def test_a_token_that_is_easily_guessed_is_refused(token):
    with pytest.raises(ConfigError, match="at least 16 characters"):
        Access(token=token)


@pytest.mark.parametrize(
    "host, expected",
    [
        pytest.param("localhost:8765", 200, id="localhost"),
        pytest.param("127.0.0.1", 200, id="without-a-port"),
        pytest.param("[::1]:8765", 200, id="ipv6"),
        pytest.param("LOCALHOST.:1", 200, id="spelled-otherwise"),
        pytest.param("evil.example", 421, id="rebound-name"),
        pytest.param("localhost.evil.example", 421, id="name-that-begins-like-ours"),
        pytest.param("192.168.1.7:8765", 421, id="another-address"),
        pytest.param("", 421, id="empty"),
        pytest.param("localhost@evil.example", 421, id="with-a-user"),
    ],
)
def test_a_page_of_somebody_else_whose_name_points_here_gets_nothing(local, host, expected):
    for path in ("/", "/api/runs", "/metrics", "/page.js"):
        answer = local.get(path, Host=host)
        assert expected == answer.status
        assert expected == 200 or b"runs" not in answer.body


@pytest.mark.parametrize(
    "host, expected", [("runs.example.org", 401), ("192.168.1.7:80", 401), ("[fe80::1]", 401), ("evil.example", 421)]
)
def test_bound_elsewhere_it_knows_addresses_and_the_names_it_was_given(guarded, host, expected):
    assert expected == guarded.get("/api/runs", Host=host).status


@pytest.mark.parametrize(
    "path", ["/api/runs", "/api/run?name=.", "/api/curve?name=.", "/api/live?name=.", "/metrics"]
)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"Authorization": "Bearer wrong-token-wrong-token"}, id="wrong"),
        pytest.param({"Authorization": TOKEN}, id="without-a-scheme"),
        pytest.param({"Authorization": f"Basic {TOKEN}"}, id="other-scheme"),
        pytest.param({"Cookie": f"crashproof-80={TOKEN}", "Host": "127.0.0.1"}, id="token-as-cookie"),
        pytest.param({"Cookie": "crashproof-80=", "Host": "127.0.0.1"}, id="empty-cookie"),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"], ids=["loopback", "elsewhere"])
def test_without_the_token_every_request_is_refused(serve, host, path, headers):
    answer = serve(access=Access.for_address(host, token=TOKEN)).get(path, **headers)

    assert (401, "Bearer") == (answer.status, answer.headers["www-authenticate"])
    assert answer.body.startswith(b"A token is required. Open the address that `crashproof serve` printed")
    assert TOKEN.encode() not in answer.body


def test_a_cookie_of_one_port_is_not_that_of_another(guarded):
    cookie = enter(guarded, Host="localhost:8765")

    assert cookie.startswith("crashproof-8765=")
    assert [200, 401] == [
        guarded.get("/api/runs", Host=f"localhost:{port}", Cookie=cookie).status for port in (8765, 8766)
    ]


@pytest.mark.parametrize(
    "host, name",
    [
        *(("[::1]:8765", "crashproof-8765"), ("[::1]", "crashproof-80"), ("localhost", "crashproof-80")),
        *(("localhost:nonsense", "crashproof-80"), ("localhost:", "crashproof-80"), ("runs.example.org:1", None)),
    ],
)
def test_the_cookie_is_named_after_the_port_that_the_browser_sees(guarded, host, name):
    cookie = enter(guarded, Host=host)

    assert (name or "crashproof-1") == cookie.partition("=")[0]
    assert 200 == guarded.get("/api/runs", Host=host, Cookie=cookie).status


def test_a_link_on_another_site_opens_the_page_of_somebody_who_is_logged_in(guarded):
    """The browser keeps a strict cookie back on a cross-site navigation, and sends it from the page's own refresh."""
    answer = guarded.get("/", **{"Sec-Fetch-Site": "cross-site"})

    assert 401 == answer.status
    assert b'<meta http-equiv="refresh" content="0;url=./">' in answer.body
    assert b"<form" in guarded.get("/", **{"Sec-Fetch-Site": "same-origin"}).body


def test_a_wrong_token_is_logged_without_its_text(guarded, caplog):
    guarded.get("/api/runs", Authorization="Bearer wrong-token-wrong-token")
    guarded.get("/?token=wrong-token-wrong-token")

    assert ["A request from 127.0.0.1 with a wrong token was refused."] * 2 == caplog.messages


@pytest.mark.parametrize("query", [f"?token={TOKEN}", "?name=."])
def test_in_the_address_a_token_counts_for_the_page_alone(guarded, query):
    assert 401 == guarded.get(f"/api/runs{query}").status


def test_a_program_looks_with_the_token_in_a_header(guarded):
    assert 200 == guarded.get("/api/runs", Authorization=f"Bearer {TOKEN}").status


def test_the_printed_address_sets_a_cookie_and_leaves_no_token_in_the_address_bar(guarded):
    entered = guarded.get(f"/?token={TOKEN}")
    cookie = entered.headers["set-cookie"]

    assert (303, "./") == (entered.status, entered.headers["location"])
    assert TOKEN not in cookie
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert "no-store" == entered.headers["cache-control"]
    assert 200 == guarded.get("/api/runs", Cookie=cookie.partition(";")[0]).status


def test_a_wrong_token_in_the_address_is_reported_and_not_shown(guarded):
    answer = guarded.get("/?token=wrong-token-wrong-token")

    assert 401 == answer.status
    assert b"Wrong token." in answer.body
    assert b"wrong-token" not in answer.body


def test_without_a_token_the_page_is_a_form_for_it(guarded):
    answer = guarded.get("/")

    assert (401, "text/html; charset=utf-8") == (answer.status, answer.headers["content-type"])
    assert b"<form" in answer.body


def test_every_response_has_the_security_headers(local, guarded, open_tracker, tmp_path):
    open_tracker(output_dir=tmp_path / "good")
    open_tracker(output_dir=tmp_path / "newer")
    (tmp_path / "newer" / "progress" / "events.jsonl").write_bytes(
        encode({"event": "landed_on_mars", "timestamp": 1.0, "attempt": 1, "v": 99})
    )
    answers = {
        200: local.get("/"),
        303: guarded.get(f"/?token={TOKEN}"),
        400: local.get("/api/curve?name=good&points=x"),
        401: guarded.get("/"),
        404: local.get("/nothing"),
        405: local.get("/api/runs", method="POST"),
        409: local.get("/api/run?name=newer"),
        413: local.get("/api/runs", **{"Content-Length": "1000000"}),
        421: local.get("/", Host="evil.example"),
    }
    assert {status: status for status in answers} == {status: each.status for status, each in answers.items()}
    for answer in answers.values():
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert ("nosniff", "no-referrer", "DENY") == tuple(
            answer.headers[name] for name in ("x-content-type-options", "referrer-policy", "x-frame-options")
        )
        assert "frame-ancestors 'none'" in policy
        assert answer.status == 200 or "no-store" == answer.headers["cache-control"]


def test_what_is_no_http_is_refused_with_the_security_headers(local):
    with socket.create_connection(("127.0.0.1", local.port), timeout=10) as client:
        client.sendall(b"NONSENSE\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b"")).lower()

    assert answer.startswith(b"http/1.1 400 ")
    assert all(f"{name}: {value}".encode().lower() in answer for name, value in SECURITY_HEADERS.items())


async def fail(scope, receive, send):
    raise ValueError("a\nfault")


async def fail_late(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ValueError("late")


@pytest.mark.parametrize("application, statuses", [(fail, [500]), (fail_late, [200])])
def test_a_fault_of_the_server_is_one_log_line_and_an_answer_with_the_security_headers(application, statuses, caplog):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "path": "/api/run",
        "query_string": b"token=secret",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(AccessGuard(application, Access())(scope, None, send))

    assert statuses == [each["status"] for each in sent if "status" in each]
    assert b"content-security-policy" in dict(sent[0]["headers"])
    assert 1 == len(caplog.messages)
    assert caplog.messages[0].startswith("A request for /api/run failed: ValueError: ")
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "headers, expected",
    [
        ({"Content-Length": "10"}, 200),
        ({"Content-Length": "16385"}, 413),
        ({"Content-Length": "9" * 18}, 413),
        ({"Transfer-Encoding": "chunked"}, 413),
    ],
)
def test_a_request_with_a_long_body_is_refused(local, headers, expected):
    assert expected == local.get("/api/runs", **headers).status


def test_nothing_can_be_changed_through_it(local):
    assert {405} == {local.get("/api/runs", method=method).status for method in ("POST", "PUT", "DELETE", "PATCH")}
