"""Base URLs as people copy them, headers that servers want, and proxies that are in the way."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from generating import PROXY_VARIABLES, generate
from teaching import completion, http_server, json_response

from crashproof.distillation.settings.api_teacher import ApiTeacherFields
from crashproof.distillation.teachers.api import identifying_fields, open_teacher
from crashproof.errors import ConfigError, CrashproofError, RequestError, TeacherError, TeacherRefused
from crashproof.reading.run_reader import RunReader
from crashproof.rules.base_urls import canonical_base_url, completions_url
from crashproof.teacher import Endpoint
from crashproof.testing import TeacherServer
from crashproof.testing.teacher_server.http_stub import Request, Response

KEY = "made-up-key-0123456789abcdef"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def seen() -> list[Request]:
    return []


@pytest.fixture
def server(seen) -> Iterator[str]:
    def answer(request: Request) -> Response:
        seen.append(request)
        return json_response(completion())

    with http_server(answer) as url:
        yield url


def requests_in_doubt(tmp_path) -> int:
    return RunReader.open(tmp_path / "D.run").session().api_requests_in_doubt


@contextmanager
def listening(reply: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a raw listener, such as a proxy or a server with TLS."""
    listener = socket.create_server(("127.0.0.1", 0))
    is_over = threading.Event()

    def serve() -> None:
        while not is_over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    reply(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        is_over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


# Addresses.


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1"),
        ("https://api.example.com/v1/chat/completions/", "https://api.example.com/v1"),
        (" https://API.example.com:443/v1\n", "https://api.example.com/v1"),
        ("https://api.example.com/chat/completions?api-version=1", "https://api.example.com?api-version=1"),
        (
            "https://me.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
            "https://me.openai.azure.com/openai/deployments/gpt?api-version=2024-10-21",
        ),
    ],
)
def test_an_address_as_it_is_copied_is_understood(written, expected):
    assert expected == canonical_base_url(written)
    assert expected == canonical_base_url(canonical_base_url(written))


def test_a_query_stays_behind_the_path():
    url = canonical_base_url("https://me.openai.azure.com/openai/deployments/gpt?api-version=2024-10-21")

    assert (
        "https://me.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=2024-10-21"
        == completions_url(url)
    )


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("https://api.example.com/v1/responses", "https://api.example.com/v1."),
        ("https://api.example.com/v1/completions", "https://api.example.com/v1."),
        ("https://api.example.com/v1/messages/", "https://api.example.com/v1."),
        ("https://api.example.com/v1/embeddings", "another API"),
        ("http://localhost:11434/api/chat", "http://localhost:11434/v1."),
        ("localhost:8000/v1", "http://localhost:8000/v1."),
        ("api.example.com/v1", "https://api.example.com/v1."),
        ("https://me:hunter2@api.example.com/v1", "--header"),
        ("https://api.example.com/v1?key=AIza0123456789abcdef", "--query key=env:VAR"),
        ("https://api.example.com/v1#part", "fragment"),
    ],
)
def test_an_address_that_leads_elsewhere_is_refused_with_the_right_one(written, word):
    with pytest.raises(RequestError) as refusal:
        Endpoint(base_url=written)

    assert word in f"{refusal.value} {refusal.value.hint}"
    assert "hunter2" not in str(refusal.value)


def test_a_job_at_a_copied_address_asks_the_right_one(tmp_path, server, seen):
    generate(tmp_path, f"{server}/chat/completions?api-version=2024-10-21", num_prompts=1)

    assert ("/v1/chat/completions", "api-version=2024-10-21") == (seen[0].path, seen[0].query)


# Headers.


def test_azures_header_takes_the_place_of_the_key_and_is_hidden(tmp_path, server, seen):
    result = generate(
        tmp_path,
        server,
        "--header",
        "api-key=env:AZURE_KEY",
        "--header",
        "X-Title=My run",
        num_prompts=1,
        environment={"AZURE_KEY": KEY, "OPENAI_API_KEY": "sk-of-another-provider-123"},
    )

    assert 0 == result.exit_code
    assert (KEY, "My run", None) == tuple(
        seen[0].headers.get(name) for name in ("api-key", "x-title", "authorization")
    )
    kept = b"".join(path.read_bytes() for path in (tmp_path / "D.run").rglob("*") if path.is_file())
    assert KEY.encode() not in kept


def test_a_secret_that_a_server_repeats_is_hidden(tmp_path):
    def echo(request: Request) -> Response:
        return json_response({"error": {"message": f"Wrong key {request.headers['api-key']}"}}, status=401)

    with http_server(echo) as url, pytest.raises(TeacherRefused) as refusal:
        generate(tmp_path, url, "--header", "api-key=env:AZURE_KEY", environment={"AZURE_KEY": KEY})

    assert KEY not in str(refusal.value)


def test_a_trainers_config_takes_the_same_options(server, seen, open_tracker, monkeypatch):
    monkeypatch.setenv("AZURE_KEY", KEY)
    config = ApiTeacherFields(
        model="teacher",
        base_url=f"{server}/?api-version=1",
        headers={"api-key": "env:AZURE_KEY"},
        query={"code": "env:AZURE_KEY"},
        parameters={"stream": True},
        first_byte_seconds=5.0,
        between_chunks_seconds=5.0,
    )

    with open_teacher(config, open_tracker()) as teacher:
        teacher.ask("2 + 2?")

    assert (KEY, f"api-version=1&code={KEY}") == (seen[0].headers["api-key"], seen[0].query)
    assert b'"stream":true' in seen[0].body
    assert {} == identifying_fields(config)["parameters"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--header", f"api-key={KEY}"], "env:VAR"),
        (["--header", f"Authorization=Bearer {KEY}"], "env:VAR"),
        (["--header", "api-key=env:NOT_SET"], "NOT_SET"),
        (["--header", KEY], "has no name"),
        (["--header", "Content-Length=5"], "Leave it out"),
        (["--header", "Idempotency-Key=mine"], "Leave it out"),
        (["--header", "X Y=5"], "not the name of a header"),
        (["--header", "X-Y=a\nb"], "line break"),
        (["--query", f"key={KEY}"], "env:VAR"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_cannot_be_sent_is_refused_before_anything_is(tmp_path, server, seen, options, word):
    with pytest.raises(ConfigError) as refusal:
        generate(tmp_path, server, *options)

    assert word in f"{refusal.value} {refusal.value.hint}"
    assert KEY not in f"{refusal.value} {refusal.value.hint}"
    assert [] == seen


# Proxies.


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize(
    ("proxy", "word"),
    [
        ("socks://127.0.0.1:1080", "SOCKS support is not installed"),
        ("socks5h://me:hunter2@127.0.0.1:1080", "SOCKS support is not installed"),
        ("socks4://127.0.0.1:1080", "cannot be used as a proxy"),
        ("ftp://127.0.0.1:21", "cannot be used as a proxy"),
        ("http://127.0.0.1:port", "cannot be used as a proxy"),
        ("http://", "cannot be used as a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_in_one_line_and_leaves_nothing_in_doubt(
    tmp_path, monkeypatch, name, proxy, word
):
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    for _ in range(4):
        with pytest.raises(ConfigError, match=word) as refusal:
            generate(tmp_path, "https://teacher.example/v1", environment={name: proxy})

    assert refusal.value.message.startswith(name)
    assert "\n" not in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
    assert "NO_PROXY" in refusal.value.hint
    assert 0 == requests_in_doubt(tmp_path)


@pytest.mark.parametrize(
    ("status", "is_lasting"),
    [("407 Proxy Authentication Required", True), ("403 Forbidden", True), ("503 Service Unavailable", False)],
)
def test_a_proxy_that_refuses_is_named_and_nothing_is_in_doubt(tmp_path, status, is_lasting):
    asked: list[bytes] = []

    def refuse(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(f"HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<p/>".encode())

    with (
        listening(refuse) as address,
        pytest.raises(TeacherError, match=f"through the proxy http://{address}") as error,
    ):
        generate(
            tmp_path,
            "https://teacher.example/v1",
            "--attempts",
            2,
            "--concurrency",
            2,
            num_prompts=4,
            environment={"https_proxy": f"http://me:hunter2@{address}"},
        )

    assert status.split()[0] in str(error.value)
    assert "hunter2" not in str(error.value)
    assert isinstance(error.value, TeacherRefused) == is_lasting
    assert (len(asked) <= 2) or not is_lasting
    assert 0 == requests_in_doubt(tmp_path)


def test_a_proxy_that_hangs_up_leaves_nothing_in_doubt(tmp_path):
    with listening(lambda connection: connection.recv(65536)) as address, pytest.raises(TeacherError, match="proxy"):
        generate(
            tmp_path,
            "https://teacher.example/v1",
            "--attempts",
            2,
            num_prompts=2,
            environment={"https_proxy": address},
        )

    assert 0 == requests_in_doubt(tmp_path)


def test_the_proxys_own_answer_to_a_plain_request_names_the_proxy(tmp_path):
    with (
        http_server(
            lambda request: Response(status=407, content_type="text/html", pieces=(b"<p>Log in</p>",))
        ) as url,
        pytest.raises(TeacherRefused, match=r"through the proxy http://127\.0\.0\.1") as refusal,
    ):
        generate(tmp_path, "http://teacher.example/v1", environment={"HTTP_PROXY": url.removesuffix("/v1")})

    assert "password of the proxy" in refusal.value.hint


def test_a_proxys_page_in_place_of_an_answer_names_the_proxy(tmp_path):
    page = Response(content_type="text/html", pieces=(b"<p>Log in to the network</p>",))
    with (
        http_server(lambda request: page) as url,
        pytest.raises(TeacherError, match=r"a page instead of an answer through the proxy http://127\.0\.0\.1"),
    ):
        generate(
            tmp_path,
            "http://teacher.example/v1",
            "--attempts",
            1,
            num_prompts=1,
            environment={"HTTP_PROXY": url.removesuffix("/v1")},
        )


# What never left.


def refused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@pytest.mark.parametrize("address", [refused_address, lambda: "http://no-such-host.invalid/v1"], ids=["port", "name"])
def test_a_request_that_never_left_is_not_in_doubt_and_uses_up_no_budget(tmp_path, address):
    prices = tmp_path / "prices.yaml"
    prices.write_text("as_of: 2026-01-01\nmodels: {teacher: {input: 20, output: 120}}\n")
    options = ("--attempts", 1, "--max-tokens", 10, "--keep-truncated", "--budget", "0.01", "--prices", prices)
    for _ in range(4):
        with pytest.raises(CrashproofError, match="no connection"):
            generate(tmp_path, address(), *options, num_prompts=4)
    assert 0 == requests_in_doubt(tmp_path)

    with TeacherServer() as server:
        assert 0 == generate(tmp_path, server.base_url, *options, num_prompts=1).exit_code


def test_a_server_without_tls_is_not_tried_again_and_nothing_is_in_doubt(tmp_path):
    def speak_plainly(connection: socket.socket) -> None:
        connection.recv(64)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    with listening(speak_plainly) as address, pytest.raises(TeacherRefused, match="no connection"):
        generate(tmp_path, f"https://{address}/v1", "--concurrency", 2)

    assert 0 == requests_in_doubt(tmp_path)


def test_a_handshake_that_breaks_off_leaves_nothing_in_doubt(tmp_path):
    with listening(lambda connection: connection.recv(64)) as address, pytest.raises(TeacherError):
        generate(tmp_path, f"https://{address}/v1", "--attempts", 2, num_prompts=1)

    assert 0 == requests_in_doubt(tmp_path)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE=.*ca\.pem"):
        generate(tmp_path, "https://teacher.example/v1", environment={"SSL_CERT_FILE": str(path)})


def test_an_unknown_certificate_is_no_matter_of_patience():
    from crashproof.teacher import RetryPolicy
    from crashproof.teacher.client.wire.exchange import Exchange, reason_of

    error = ConnectionError("TLS failed")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    exchange = Exchange(None, RetryPolicy())  # type: ignore[arg-type]  # Never run.

    assert ("TLS failed", False) == reason_of(error, exchange, str)
