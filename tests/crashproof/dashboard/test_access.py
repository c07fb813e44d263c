from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from crashproof.dashboard.access import Access, is_loopback
from crashproof.errors import ConfigError

TOKEN = "a-token-of-some-length"
ELSEWHERE = Access.for_address("0.0.0.0", token=TOKEN, more_names=["runs.example.org"])


@pytest.fixture
def guarded(serve):
    return serve(access=ELSEWHERE)


@pytest.fixture
def local(serve):
    return serve(access=Access.for_address("127.0.0.1", token=None))


@pytest.mark.parametrize(
    "host, expected",
    [
        *(("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("LocalHost", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False)),
    ],
)
def test_loopback_is_known(host, expected):
    assert expected is is_loopback(host)


def test_on_loopback_no_token_is_asked_for_and_elsewhere_one_is_made():
    local, elsewhere = Access.for_address("127.0.0.1", token=None), Access.for_address("0.0.0.0", token=None)

    assert local.token is None
    assert elsewhere.token is not None
    assert len(elsewhere.token) >= 32
    assert elsewhere.token != Access.for_address("0.0.0.0", token=None).token


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
        pytest.param({"Cookie": f"crashproof={TOKEN}"}, id="token-as-cookie"),
        pytest.param({"Cookie": "crashproof="}, id="empty-cookie"),
    ],
)
def test_without_the_token_every_request_is_refused(guarded, path, headers):
    answer = guarded.get(path, **headers)

    assert (401, b"A token is required.\n", "Bearer") == (
        answer.status,
        answer.body,
        answer.headers["www-authenticate"],
    )


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
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict"))
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


def test_every_response_has_the_security_headers(local, guarded):
    for answer in (local.get("/"), local.get("/nothing"), guarded.get("/"), local.get("/", Host="evil.example")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert ("nosniff", "no-referrer", "DENY") == tuple(
            answer.headers[name] for name in ("x-content-type-options", "referrer-policy", "x-frame-options")
        )


def test_nothing_can_be_changed_through_it(local):
    assert {405} == {local.get("/api/runs", method=method).status for method in ("POST", "PUT", "DELETE", "PATCH")}
