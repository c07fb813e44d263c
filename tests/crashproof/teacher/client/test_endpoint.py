from __future__ import annotations

import html
import json
from urllib.parse import quote

import pytest

from crashproof.errors import ConfigError
from crashproof.teacher import Endpoint
from crashproof.teacher.client.endpoint import OPENAI_BASE_URL

ODD_KEYS = [
    pytest.param("sk-proj-abcdefghijklmnop", id="as OpenAI spells them"),
    pytest.param("plainlowercaseletters", id="a word"),
    pytest.param("12345678", id="digits"),
    pytest.param("a.b.c/d+e=f==", id="base64"),
    pytest.param("eyJhbGciOi.J9.eyJzdWIi-_", id="a web token"),
    pytest.param("with\"quote'and\\backslash", id="quotes"),
    pytest.param("<script>&amp;%20</script>", id="what a page or an address spells otherwise"),
    pytest.param("(.*)[a-z]+$^{1}", id="a pattern"),
    pytest.param("\\1\\g<0>$1", id="a replacement"),
]


@pytest.mark.parametrize(
    "environment, given, expected",
    [
        pytest.param({"OPENAI_API_KEY": "key-of-env"}, {}, (OPENAI_BASE_URL, "key-of-env"), id="environment"),
        pytest.param(
            {"OPENAI_API_KEY": "key-of-env", "OPENAI_BASE_URL": "http://env/v1"},
            {},
            ("http://env/v1", "key-of-env"),
            id="both of the environment",
        ),
        pytest.param(
            {"OPENAI_API_KEY": "key-of-env", "OPENAI_BASE_URL": "http://env/v1"},
            {"base_url": "http://given/v1", "api_key": "given"},
            ("http://given/v1", "given"),
            id="what is given wins",
        ),
        pytest.param(
            {}, {"base_url": "http://given/v1"}, ("http://given/v1", None), id="a server that asks for none"
        ),
        pytest.param(
            {"OPENAI_BASE_URL": "http://env/v1", "OPENAI_API_KEY": ""}, {}, ("http://env/v1", None), id="empty"
        ),
        pytest.param({"OPENAI_API_KEY": " key-of-env\n"}, {}, (OPENAI_BASE_URL, "key-of-env"), id="spaces around"),
        pytest.param({}, {"needs_key": False}, (OPENAI_BASE_URL, None), id="only looked at"),
    ],
)
def test_address_and_key_come_from_what_is_given_or_from_the_environment(environment, given, expected):
    endpoint = Endpoint.of(environment, **given)

    assert expected == (endpoint.base_url, endpoint.api_key)


@pytest.mark.parametrize("given", [{}, {"base_url": OPENAI_BASE_URL}, {"base_url": f"{OPENAI_BASE_URL}/"}], ids=str)
def test_the_providers_own_address_needs_a_key(given):
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        Endpoint.of({}, **given)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "carriage\rreturn", "schlüssel", "tab\there", "nul\0"])
@pytest.mark.parametrize("make", [lambda key: Endpoint.of({}, api_key=key), lambda key: Endpoint(api_key=key)])
def test_a_key_that_no_header_can_hold_is_refused_and_not_told(key, make):
    with pytest.raises(ConfigError) as refusal:
        make(key)

    assert key not in str(refusal.value)


def test_a_key_is_not_shown():
    assert "hunter2" not in repr(Endpoint(api_key="hunter2hunter2"))


@pytest.mark.parametrize("key", ODD_KEYS)
@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(lambda key: key, id="as it is"),
        pytest.param(lambda key: f"Bearer {key}", id="as a header"),
        pytest.param(lambda key: f"key={key}&x=1", id="as a parameter"),
        pytest.param(lambda key: json.dumps({"authorization": f"Bearer {key}"}), id="in JSON"),
        pytest.param(lambda key: f"<p>{html.escape(key)}</p>", id="on a page"),
        pytest.param(lambda key: f"/v1?k={quote(key, safe='')}", id="in an address"),
        pytest.param(lambda key: f"{key}{key} {key}", id="three times"),
    ],
)
def test_a_key_is_hidden_however_a_server_spells_it(key, spell):
    hidden = Endpoint(api_key=key).hide_key(f"Incorrect: {spell(key)} is not valid")

    assert key not in hidden
    assert json.dumps(key)[1:-1] not in hidden
    assert html.escape(key) not in hidden
    assert quote(key, safe="") not in hidden
    assert hidden.startswith("Incorrect: ")


def test_other_peoples_keys_are_hidden_too():
    assert "sk-somebodyelse1234" not in Endpoint().hide_key("Incorrect API key: sk-somebodyelse1234")


def test_a_text_without_keys_stays_as_it_is():
    text = "The model `gpt-9` does not exist or you do not have access to it."

    assert text == Endpoint(api_key="abcdefgh").hide_key(text)


def test_a_key_so_short_that_words_contain_it_hides_nothing():
    assert "EMPTY is none" == Endpoint(api_key="EMPTY").hide_key("EMPTY is none")


def test_an_answer_that_repeats_the_key_is_kept_without_it():
    endpoint = Endpoint(api_key="sk-made-up-0123456789")

    assert b'{"said": "***"}' == endpoint.without_key(b'{"said": "sk-made-up-0123456789"}')
    assert b"as it is" == endpoint.without_key(b"as it is")


def test_without_a_key_an_answer_stays_as_it_came():
    assert b"as it is" == Endpoint(base_url="http://127.0.0.1:1/v1").without_key(b"as it is")
