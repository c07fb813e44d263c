from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from crashproof.optional_dependencies import install_line

pytest.importorskip("starlette")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from crashproof.cli import main; main()", "serve", *arguments]


def serve(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    answer = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, env=os.environ | (environment or {})
    )
    return answer.returncode, answer.stdout, answer.stderr


@contextmanager
def serving(*arguments: str, environment: dict[str, str] | None = None):
    process = subprocess.Popen(
        command("--port", "0", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
    )
    try:
        yield process, process.stdout.readline()
    finally:
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)
        assert (0, "") == (process.returncode, output[1])


def get(url: str, **headers: str) -> bytes:
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10).read()


def address_and_token(line: str) -> tuple[str, str]:
    """Of the line that the server prints: the page's address, and the token."""
    address, _, token = line.split(" at ")[1].split(" ")[0].partition("?token=")
    return address, token


def list_runs(line: str) -> list[str]:
    url, token = address_and_token(line)
    return [run["name"] for run in json.loads(get(f"{url}api/runs", Authorization=f"Bearer {token}"))["runs"]]


def test_it_prints_the_address_and_ends_quietly(tmp_path, open_tracker):
    open_tracker(output_dir=tmp_path / "a")

    with serving(str(tmp_path)) as (_, line):
        url, _ = address_and_token(line)
        runs = list_runs(line)

    assert url.startswith("http://127.0.0.1:")
    assert ["a"] == runs


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_generates_and_requires_a_token(tmp_path, host):
    with serving(str(tmp_path), "--host", host) as (_, line):
        address, token = address_and_token(line)
        url = f"http://127.0.0.1:{address.rpartition(':')[2].partition('/')[0]}/api/runs"
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            get(url)
        refused.value.close()
        answer = get(url, Authorization=f"Bearer {token}")

    assert len(token) >= 32
    assert b'"runs":[]' in answer


def test_a_token_of_ones_own_comes_from_the_environment(tmp_path):
    own = {"CRASHPROOF_TOKEN": "one-of-my-own-tokens"}

    with serving(str(tmp_path), environment=own) as (_, line):
        assert "?token=one-of-my-own-tokens" in line


def test_the_printed_address_logs_a_browser_in(tmp_path):
    with serving(str(tmp_path)) as (_, line):
        url, token = address_and_token(line)
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with browser.open(f"{url}?token={token}", timeout=10) as page:
            opened = page.geturl()
        with browser.open(f"{url}metrics", timeout=10) as metrics:
            status = metrics.status

    assert (url, 200) == (opened, status)


def test_without_a_token_it_says_once_who_can_read_the_runs(tmp_path):
    with serving(str(tmp_path), "--no-token") as (process, line):
        url, token = address_and_token(line)
        warning = process.stdout.readline()
        get(f"{url}api/runs")

    assert ("", f"Without a token, anyone on this machine can read all runs under {tmp_path}.\n") == (token, warning)


@pytest.mark.parametrize(
    "arguments, environment, said",
    [
        (["--no-token", "--host", "0.0.0.0"], {}, "--no-token is for loopback alone"),
        (["--no-token"], {"CRASHPROOF_TOKEN": "one-of-my-own-tokens"}, "--no-token contradicts CRASHPROOF_TOKEN"),
    ],
)
def test_no_token_where_one_is_needed_is_an_error_in_words(tmp_path, arguments, environment, said):
    code, _, error = serve(str(tmp_path), *arguments, environment=environment)

    assert (2, True, 1) == (code, said in error, error.count("\n"))


def test_links_out_of_the_folder_are_followed_on_request(tmp_path, open_tracker):
    open_tracker(output_dir=tmp_path / "outside")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "run").symlink_to(tmp_path / "outside")

    with serving(str(tmp_path / "inside")) as (_, line):
        without = list_runs(line)
    with serving(str(tmp_path / "inside"), "--follow-links") as (_, line):
        assert ([], ["run"]) == (without, list_runs(line))


@pytest.mark.parametrize("descriptors", [256, 48])
def test_more_half_sent_requests_than_descriptors_keep_nobody_out(tmp_path, open_tracker, descriptors):
    open_tracker(output_dir=tmp_path / "runs" / "a")
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command("--port", "0", str(tmp_path / "runs")),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors)),
        )
    try:
        line = process.stdout.readline()
        url, _ = address_and_token(line)
        port = int(url.split(":")[2].strip("/"))
        with ExitStack() as clients:
            for _ in range(300):
                client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                # The server may have closed it already.
                with suppress(OSError):
                    client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")
            during = list_runs(line)
        after = [list_runs(line) for _ in range(5)]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)

    text = log.read_text()
    assert (["a"], [["a"]] * 5, 0) == (during, after, process.returncode)
    assert "Each new one replaces the one that has waited longest without a request." in text
    assert (True, False) == (len(text) < 5000, "Traceback" in text)


def test_json_has_the_address(tmp_path):
    process = subprocess.Popen(
        command("--port", "0", "--json", str(tmp_path)), stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    )
    try:
        lines = [process.stdout.readline() for _ in range(5)]
        said = json.loads("".join(lines))
    finally:
        process.terminate()
        process.communicate(timeout=30)

    assert (True, str(tmp_path)) == (len(said["token"]) >= 43, said["root"])
    assert said["url"].startswith("http://127.0.0.1:")


def test_a_port_in_use_is_an_error_in_words(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, error = serve(str(tmp_path), "--port", port)

    assert 2 == code
    assert (
        f"crashproof: Cannot listen on 127.0.0.1, port {port}: address already in use. "
        "Pass another --port, or --port 0 for a free one.\n"
    ) == error


@pytest.mark.parametrize(
    "arguments, said",
    [
        pytest.param(["nowhere"], "nowhere is not a folder. Pass the folder that the runs lie in.", id="no-folder"),
        pytest.param([".", "--host", "no such host"], "is not an address of this machine", id="no-host"),
        pytest.param([".", "--host", "192.0.2.1"], "Cannot listen on 192.0.2.1", id="foreign-host"),
    ],
)
def test_what_cannot_be_served_is_an_error_in_words(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    code, _, error = serve(*arguments)

    assert 2 == code
    assert said in error
    assert 1 == error.count("\n")


def test_a_token_that_is_too_short_is_refused(tmp_path):
    code, _, error = serve(str(tmp_path), environment={"CRASHPROOF_TOKEN": "short"})

    assert (2, True) == (code, "at least 16 characters" in error)
    assert "short\n" not in error.split("16")[0]


def test_without_the_extra_the_install_line_is_printed(tmp_path):
    program = (
        "import sys; sys.modules['starlette'] = None\n"
        "from crashproof.cli import main; sys.argv = ['crashproof', 'serve', '.']; main()"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)

    assert (2, True) == (answer.returncode, install_line("page") in answer.stderr)


def test_a_run_itself_can_be_served(tmp_path, open_tracker):
    open_tracker(output_dir=tmp_path / "a")

    with serving(str(Path(tmp_path) / "a")) as (_, line):
        assert ["."] == list_runs(line)
