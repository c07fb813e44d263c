from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.rules.secrets.known import KnownSecrets

KEYS = [
    "correct-horse/battery",
    "nvapi-abcdef",
    "with\"quote'and\\slash",
    "<b>&amp;%20",
    "schlüssel-für-😀",
    "a.b+c/d==",
]
ESCAPES = [
    str,
    lambda each: "".join(
        f"\\u{each.encode('utf-16-be').hex()[at : at + 4]}" for at in range(0, 2 * len(each.encode("utf-16-be")), 4)
    ),
    lambda each: "".join(f"%{byte:02X}" for byte in each.encode()),
    lambda each: "".join(f"%25{byte:02x}" for byte in each.encode()),
    lambda each: f"&#{ord(each)};",
    lambda each: f"&#x{ord(each):X};",
    html.escape,
]


@settings(max_examples=300)
@given(st.sampled_from(KEYS), st.data())
def test_a_secret_is_found_with_any_part_of_it_escaped_in_any_way(key, data):
    spelled = "".join(data.draw(st.sampled_from(ESCAPES))(each) for each in key)
    text = f"before {spelled} after"

    assert "before *** after" == KnownSecrets([key]).hide(text)
    body = json.dumps({"echo": [text, {spelled: 1}], "n": 1.50}).encode()
    assert {"echo": ["before *** after", {"***": 1}], "n": 1.5} == json.loads(KnownSecrets([key]).hide_in_body(body))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("before", ["", "B", "Be", "Bearer ", "user:"])
@pytest.mark.parametrize(
    "encode", [base64.b64encode, base64.urlsafe_b64encode, lambda content: content.hex().encode()]
)
def test_a_secret_is_found_in_base64_and_hex(key, before, encode):
    content = before.encode() + key.encode()
    spelled = encode(content).decode()
    hidden = KnownSecrets([key]).hide(f"said: {spelled}.")

    assert "***" in hidden
    assert len(hidden) <= len("said: ***.") + 2 * len(before.encode()) + 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1.50, "b" : "\\u00e9\\n"}',
        b'{"a": 1} trailing',
        b"\xff\xfe no text",
        b"",
        b"[" * 5000,
        json.dumps({"said": "correct horse battery \\u0020 %20 &amp;"}).encode(),
    ],
)
def test_a_body_without_the_secret_stays_as_it_came(body):
    assert body == KnownSecrets(KEYS).hide_in_body(body)


@pytest.mark.parametrize(
    "body, expected",
    [
        pytest.param(b'{"a": "\\nvapi-abcdef"}', b'{"a":"\\nvapi-abcdef"}', id="only the escape of a line break"),
        pytest.param(b'{"a": "nvapi-abcdef", "a": 1}', b'{"a": "***", "a": 1}', id="a member that is given twice"),
        pytest.param(b"\xff nvapi-abcdef \xfe", b"\xff *** \xfe", id="no text"),
        pytest.param(b'{"a": "\\u005cu006evapi-abcdef"}', b'{"a":"***"}', id="an escaped escape"),
        pytest.param(b"[" * 5000 + b'"nvapi-abcdef"', b"[" * 5000 + b'"***"', id="nested too deeply"),
        pytest.param(b"NVAPI-ABCDEF", b"***", id="in capitals"),
    ],
)
def test_a_body_with_the_secret_is_kept_without_it(body, expected):
    assert expected == KnownSecrets(["nvapi-abcdef"]).hide_in_body(body)


def test_of_two_secrets_the_longer_is_hidden_whole():
    assert "*** and ***" == KnownSecrets(["abcdefgh", "abcdefgh-more"]).hide("abcdefgh-more and abcdefgh")


@pytest.mark.parametrize("secrets", [[], [""], ["short"]])
def test_without_a_secret_of_some_length_nothing_is_hidden(secrets):
    assert "short %20" == KnownSecrets(secrets).hide("short %20")
    assert b"short" == KnownSecrets(secrets).hide_in_body(b"short")


def test_a_long_text_of_escapes_is_searched_in_time_proportional_to_its_length():
    """One of quadratic time would take minutes."""
    for text in ("\\" * 20_000, "%25" * 100_000, "&amp;" * 50_000, quote("é") * 50_000):
        assert text == KnownSecrets(["\\\\slashes-and-more"]).hide(text)
