from __future__ import annotations

import copy
import enum
import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageFunctionToolCall

from crashproof.errors import RequestError
from crashproof.rules.requests import TeacherRequest, nearest_difference, teacher_request

URL = "https://api.example.com/v1"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
BODY: dict[str, Any] = {
    "model": "teacher",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
    "temperature": 0.7,
    "max_tokens": 16,
    "tools": [TOOL],
}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=12,
)
bodies = st.dictionaries(texts, json_values, max_size=6).map(lambda more: more | {"model": "teacher"})


def request(body: dict[str, Any] | None = None, *, url: str = URL, sample: int = 0, **changed: Any) -> TeacherRequest:
    return teacher_request(url, {**(BODY if body is None else body), **changed}, sample=sample)


def key(body: dict[str, Any] | None = None, **how: Any) -> str:
    return request(body, **how).key


def shuffled(value: Any, chance: random.Random) -> Any:
    """The same JSON value with the keys of every object in another order."""
    if isinstance(value, dict):
        names = list(value)
        chance.shuffle(names)
        return {name: shuffled(value[name], chance) for name in names}
    if isinstance(value, list):
        return [shuffled(child, chance) for child in value]
    return value


@given(bodies, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter_anywhere(body, chance):
    assert key(body) == key(shuffled(body, chance))


@given(bodies)
def test_making_a_request_changes_nothing_of_what_was_passed(body):
    before = copy.deepcopy(body)
    made = request(body)

    assert before == body
    assert made.key == key(made.body)


@settings(max_examples=200)
@given(bodies, bodies)
def test_two_bodies_share_a_key_only_if_they_say_the_same(one, other):
    made = request(one), request(other)
    said = [msgspec.json.encode(each.body, order="sorted") for each in made]

    assert (made[0].key == made[1].key) == (said[0] == said[1])


def test_a_key_stays_what_it_is():
    """What is on users' disks is found under it: a change here makes them pay again."""
    made = request({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5})

    assert "94f9366356631a7d2d0ec834d33d8f8a29c2bc3bca3ebd6672e38c9eccb54cb1" == made.key


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"model": "teacher-2"}, id="model"),
        pytest.param({"messages": [{"role": "user", "content": "2 + 3?"}]}, id="messages"),
        pytest.param({"messages": [{"role": "user", "content": "2 + 2? "}]}, id="a space"),
        pytest.param({"messages": list(reversed(BODY["messages"]))}, id="order of messages"),
        pytest.param({"tools": [TOOL, TOOL]}, id="tools"),
        pytest.param({"tools": None}, id="no tools"),
        pytest.param({"temperature": 0.71}, id="temperature"),
        pytest.param({"max_tokens": 17}, id="max_tokens"),
        pytest.param({"max_completion_tokens": 16}, id="max_completion_tokens"),
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"n": 2}, id="n"),
        pytest.param({"top_p": 0.9}, id="top_p"),
        pytest.param({"stop": ["\n"]}, id="stop"),
        pytest.param({"logprobs": True}, id="logprobs"),
        pytest.param({"top_logprobs": 0}, id="top_logprobs"),
        pytest.param({"response_format": {"type": "json_object"}}, id="response_format"),
        pytest.param({"tool_choice": "auto"}, id="tool_choice"),
        pytest.param({"reasoning_effort": "low"}, id="reasoning_effort"),
        pytest.param({"logit_bias": {"50256": -100}}, id="logit_bias"),
        pytest.param({"invented_later": 1}, id="a parameter that nobody knows yet"),
        pytest.param({"sample": 0}, id="a parameter named sample"),
        pytest.param({"base_url": URL}, id="a parameter named base_url"),
        pytest.param({"": ""}, id="a parameter without a name"),
    ],
)
def test_whatever_could_change_the_answer_changes_the_key(changed):
    assert key() != key(body=BODY | changed)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"stream": True}, id="stream"),
        pytest.param({"stream_options": {"include_usage": True}}, id="stream_options"),
        pytest.param({"user": "u-1"}, id="user"),
        pytest.param({"safety_identifier": "u-1"}, id="safety_identifier"),
        pytest.param({"metadata": {"job": "7"}}, id="metadata"),
        pytest.param({"store": True}, id="store"),
        pytest.param({"service_tier": "flex"}, id="service_tier"),
        pytest.param({"prompt_cache_key": "c"}, id="prompt_cache_key"),
        pytest.param({"prompt_cache_retention": "24h"}, id="prompt_cache_retention"),
        pytest.param({"seed": None}, id="a parameter that is None"),
    ],
)
def test_how_an_answer_is_delivered_billed_or_filed_does_not_matter(changed):
    assert key() == key(body=BODY | changed)


def test_what_does_not_matter_is_sent_all_the_same():
    assert "u-1" == request(user="u-1").body["user"]


def test_a_parameter_that_is_none_is_not_sent():
    assert "seed" not in request(seed=None).body


def test_each_sample_of_a_question_has_a_key_of_its_own():
    assert 3 == len({key(sample=sample) for sample in range(3)})


def test_a_sample_is_no_seed():
    assert key(sample=1) != key(seed=1)


@pytest.mark.parametrize(
    "same",
    [
        pytest.param("https://api.example.com/v1/", id="slash at the end"),
        pytest.param("https://api.example.com/v1///", id="slashes at the end"),
        pytest.param("HTTPS://API.Example.COM/v1", id="upper case"),
        pytest.param("https://api.example.com:443/v1", id="usual port"),
        pytest.param("https://api.example.com:/v1", id="empty port"),
    ],
)
def test_one_address_spelled_in_several_ways_is_one(same):
    assert (URL, key()) == (request(url=same).base_url, key(url=same))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param("http://api.example.com/v1", id="scheme"),
        pytest.param("https://api.example.org/v1", id="host"),
        pytest.param("https://api.example.com:8443/v1", id="port"),
        pytest.param("https://api.example.com:80/v1", id="the other scheme's port"),
        pytest.param("https://api.example.com/V1", id="case of the path"),
        pytest.param("https://api.example.com/v2", id="path"),
        pytest.param("https://api.example.com", id="no path"),
    ],
)
def test_another_address_is_another_request(other):
    assert key() != key(url=other)


def test_an_address_of_ipv6_stays_one():
    assert ["http://[::1]:8000/v1", "http://[::1]/v1"] == [
        request(url=url).base_url for url in ("http://[::1]:8000/v1/", "HTTP://[::1]:80/v1")
    ]


@pytest.mark.parametrize(
    "one, other",
    [
        pytest.param(1.0, 1, id="a whole float"),
        pytest.param(0.0, 0, id="zero"),
        pytest.param(-0.0, 0, id="negative zero"),
        pytest.param(0.1, 0.1000000000000000055, id="the same double"),
    ],
)
def test_a_number_spelled_in_two_ways_is_one_parameter(one, other):
    assert key(temperature=one) == key(temperature=other)


@pytest.mark.parametrize(
    "one, other",
    [
        pytest.param(True, 1, id="true is not 1"),
        pytest.param(False, 0, id="false is not 0"),
        pytest.param("1", 1, id="text is no number"),
        pytest.param([1], 1, id="a list is no number"),
        pytest.param({}, [], id="an object is no list"),
        pytest.param("", None, id="empty is not absent"),
        pytest.param(0, None, id="0 is not absent"),
    ],
)
def test_what_python_or_a_careless_eye_takes_for_equal_is_told_apart(one, other):
    assert key(x=one) != key(x=other)


def test_within_messages_and_tools_numbers_stay_as_they_are_written():
    """A chat template prints 1.0 and 1 differently."""
    with_float = {"messages": [{"role": "user", "content": "x", "score": 1.0}]}
    with_int = {"messages": [{"role": "user", "content": "x", "score": 1}]}

    assert key(**with_float) != key(**with_int)


def test_text_that_looks_the_same_and_is_not_is_told_apart():
    composed, decomposed = "\u00e9", "e\u0301"

    assert key(messages=[{"role": "user", "content": composed}]) != key(
        messages=[{"role": "user", "content": decomposed}]
    )


def test_the_official_clients_messages_are_the_same_as_dicts():
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":2}'}}
    as_dicts = [{"role": "assistant", "content": "Let me add."}, {"role": "assistant", "tool_calls": [call]}]
    as_objects = [
        ChatCompletionMessage(role="assistant", content="Let me add."),
        ChatCompletionMessage(
            role="assistant", tool_calls=[ChatCompletionMessageFunctionToolCall.model_validate(call)]
        ),
    ]

    assert key(messages=as_dicts) == key(messages=as_objects)
    assert as_dicts == request(messages=as_objects).body["messages"]


def test_tuples_are_lists():
    assert key(stop=["a", "b"]) == key(stop=("a", "b"))


def test_members_of_an_enumeration_of_texts_are_texts():
    class Role(enum.StrEnum):
        USER = "user"

    assert key(messages=[{"role": "user", "content": "x"}]) == key(messages=[{"role": Role.USER, "content": "x"}])


def test_whole_numbers_of_any_size_are_kept():
    assert 2**70 == msgspec.json.decode(msgspec.json.encode(request(seed=2**70).body))["seed"]


def test_a_huge_float_is_a_parameter_like_any_other():
    assert key(x=1e300) == key(x=1e300)
    assert key(x=1e300) != key(x=1e299)


@pytest.mark.parametrize(
    "value, told",
    [
        pytest.param(math.nan, "nan", id="NaN"),
        pytest.param(math.inf, "inf", id="infinity"),
        pytest.param("\ud800", "lone surrogate", id="lone surrogate"),
        pytest.param(b"bytes", "a bytes, not a JSON value", id="bytes"),
        pytest.param(bytearray(b"x"), "a bytearray, not a JSON value", id="bytearray"),
        pytest.param(memoryview(b"x"), "a memoryview, not a JSON value", id="memoryview"),
        pytest.param({1: "x"}, "the key 1, which is not a string", id="key that is no text"),
        pytest.param({None: "x"}, "the key None, which is not a string", id="key that is None"),
        pytest.param({"\udfff": "x"}, "lone surrogate", id="lone surrogate in a key"),
        pytest.param({1, 2}, "a set, not a JSON value", id="set"),
        pytest.param(object(), "a object, not a JSON value", id="object"),
        pytest.param(1j, "a complex, not a JSON value", id="complex"),
    ],
)
@pytest.mark.parametrize("place", ["parameter", "message"])
def test_what_json_cannot_hold_is_refused_with_its_place(value, told, place):
    changed = {"x": value} if place == "parameter" else {"messages": [{"role": "user", "content": value}]}
    with pytest.raises(RequestError) as refusal:
        request(**changed)

    assert told in str(refusal.value)
    assert ("x" if place == "parameter" else "messages[0].content") in str(refusal.value)


@pytest.mark.parametrize("names", [[1], [1, 2], [None, "a"], [b"x"]], ids=str)
def test_a_parameter_whose_name_is_no_text_is_refused(names):
    with pytest.raises(RequestError, match="not a string"):
        request(body=BODY | dict.fromkeys(names, 1))


def test_a_name_of_half_a_character_is_refused():
    with pytest.raises(RequestError, match="lone surrogate"):
        request(body=BODY | {"\ud800": 1})


def test_a_body_that_contains_itself_is_refused():
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RequestError, match="too deep"):
        request(messages=endless)


@pytest.mark.parametrize("model", [None, "", 7, ["m"]], ids=str)
def test_a_request_names_its_model(model):
    with pytest.raises(RequestError, match="no model"):
        request(model=model)


@pytest.mark.parametrize("sample", [-1, -7])
def test_samples_are_counted_from_zero(sample):
    with pytest.raises(RequestError, match="0 or more"):
        request(sample=sample)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example.com/v1",
        "ftp://api.example.com",
        "file:///etc/passwd",
        "https://",
        "https:///v1",
        "http://[::1",
    ],
)
def test_what_is_no_http_address_is_refused(url):
    with pytest.raises(RequestError, match="base URL"):
        request(url=url)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https://me:hunter2@api.example.com/v1", id="password"),
        pytest.param("https://hunter2@api.example.com/v1", id="user"),
        pytest.param("https://:hunter2@api.example.com/v1", id="password alone"),
        pytest.param("https://api.example.com/v1?key=hunter2", id="query"),
        pytest.param("https://api.example.com/v1#hunter2", id="fragment"),
        pytest.param("ftp://me:hunter2@api.example.com/v1", id="password and another scheme"),
        pytest.param("me:hunter2@api.example.com/v1", id="password and no scheme"),
        pytest.param("https://me:hunter2@api.example.com:99999/v1", id="password and an impossible port"),
        pytest.param("https://me:hunter2@api.example.com:port/v1", id="password and a port of letters"),
        pytest.param("https://me:hunter2@[::1/v1", id="password and a broken address"),
        pytest.param("https://api.example.com:x/v1?key=hunter2", id="query and a port of letters"),
        pytest.param("nothing?key=hunter2", id="query and no scheme"),
    ],
)
def test_an_address_with_a_secret_is_refused_and_the_secret_is_not_told(url):
    with pytest.raises(RequestError) as refusal:
        request(url=url)

    assert "hunter2" not in str(refusal.value)
    assert "hunter2" not in repr(refusal.value)


def test_a_request_knows_its_model_and_what_is_kept_of_it():
    made = request(sample=2)

    assert "teacher" == made.model
    assert {"base_url": URL, "sample": 2, "body": BODY} == made.as_record()


@pytest.mark.parametrize(
    "changed, told",
    [
        pytest.param({"temperature": 0.8}, "temperature (0.7 here, 0.8 stored)", id="number"),
        pytest.param({"seed": 5}, "seed (absent here, 5 stored)", id="absent here"),
        pytest.param({"max_tokens": None}, "max_tokens (16 here, absent stored)", id="absent there"),
        pytest.param({"max_tokens": True}, "max_tokens (16 here, true stored)", id="kind"),
        pytest.param({"model": "teacher-2"}, 'model ("teacher" here, "teacher-2" stored)', id="model"),
        pytest.param({"tools": [TOOL, TOOL]}, "tools (1 entries here, 2 entries stored)", id="another tool"),
        pytest.param(
            {"tools": [{"type": "function", "function": {"name": "sub", "parameters": {"type": "object"}}}]},
            'tools[0].function.name ("add" here, "sub" stored)',
            id="within a tool",
        ),
        pytest.param(
            {"tools": [{"type": "other", "function": TOOL["function"]}]},
            'tools[0].type ("function" here, "other" stored)',
            id="a later key of a tool",
        ),
        pytest.param(
            {"messages": [BODY["messages"][0], {"role": "user", "content": "2 + 3?"}]},
            'messages[1].content ("2 + 2?" here, "2 + 3?" stored)',
            id="within a message",
        ),
        pytest.param(
            {"messages": [*BODY["messages"], {"role": "user", "content": "?"}]},
            "messages (2 entries here, 3 entries stored)",
            id="another message",
        ),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "t" * 80}}}},
            "response_format (absent here, ",
            id="something long",
        ),
    ],
)
def test_a_miss_names_the_parameter_of_the_nearest_answer_with_both_values(changed, told):
    far = request(messages=[{"role": "user", "content": "far"}], temperature=0.1, model="far", sample=3).as_record()

    said = nearest_difference(request(), [far, request(**changed).as_record(), far])

    assert said.startswith(f"The nearest stored request differs in {told}")
    assert len(said) < 400


def test_whoever_sends_a_request_again_sends_the_same_idempotency_key_and_a_replacement_another():
    made = request()

    assert f"crashproof-{made.key}" == made.idempotency_key == request().idempotency_key
    replacing = structs.replace(made, replaced="r1")
    assert (made.key, made.as_record()) == (replacing.key, replacing.as_record())
    assert 3 == len({made.idempotency_key, replacing.idempotency_key, request(sample=1).idempotency_key})


def test_a_miss_of_two_parameters_names_both():
    near = request(temperature=0.2, max_tokens=99).as_record()

    assert (
        "The nearest stored request differs in max_tokens (16 here, 99 stored); temperature (0.7 here, 0.2 stored)."
    ) == nearest_difference(request(), [near])


def test_a_miss_by_the_sample_or_the_address_says_so():
    asked = request(sample=1)

    assert "sample (1 here, 0 stored)" in nearest_difference(asked, [request().as_record()])
    assert 'base_url ("https://api.example.com/v1" here, "http://localhost/v1" stored)' in nearest_difference(
        request(), [request(url="http://localhost/v1").as_record()]
    )


@pytest.mark.parametrize(
    "other, place",
    [pytest.param("a" * 50 + "b" + "a" * 49, 50, id="differs"), pytest.param("a" * 60, 60, id="ends earlier")],
)
def test_of_long_texts_the_place_is_named_and_not_the_texts(other, place):
    here = request(messages=[{"role": "user", "content": "a" * 100}])
    there = request(messages=[{"role": "user", "content": other}])

    assert f"The nearest stored request differs in messages[0].content from character {place}." == nearest_difference(
        here, [there.as_record()]
    )


def test_what_does_not_matter_is_no_difference():
    stored = request(user="somebody else", temperature=0.2).as_record()

    assert "user" not in nearest_difference(request(), [stored])


def test_a_message_weighs_more_than_any_parameter():
    other_question = request(messages=[{"role": "user", "content": "?"}]).as_record()
    other_settings = request(model="teacher-2", tools=None, temperature=0.1).as_record()

    assert "model" in nearest_difference(request(), [other_question, other_settings])


def test_reading_stops_at_what_could_not_be_nearer():
    def stored():
        yield request(seed=1).as_record()
        pytest.fail("read on")

    assert "seed" in nearest_difference(request(), stored())


def test_an_empty_store_says_so():
    assert "The store holds no answer whose request is known." == nearest_difference(request(), [])


def test_a_request_that_is_there_says_so():
    assert "The store holds an answer to this exact request." == nearest_difference(
        request(), [request().as_record()]
    )


def test_a_key_in_the_path_of_the_base_url_is_refused_and_not_shown():
    with pytest.raises(RequestError, match=r"host\.example contains what looks like a key") as refusal:
        teacher_request("https://host.example/sk-proj-abcdef1234567890/v1", {"model": "m", "messages": []})

    assert "abcdef1234567890" not in str(refusal.value)


def test_a_request_that_could_not_be_stored_with_its_answer_is_refused_before_it_is_paid_for():
    message = {"role": "user", "content": "x" * (17 << 20)}

    with pytest.raises(RequestError, match="more than the 16,777,216 that can be stored"):
        teacher_request("https://x/v1", {"model": "m", "messages": [message]})


@pytest.mark.parametrize("levels", [398, 100_000])
def test_a_request_that_is_nested_too_deeply_is_refused(levels):
    content: list[object] = []
    for _ in range(levels):
        content = [content]

    with pytest.raises(RequestError, match="nested too deeply"):
        teacher_request("https://x/v1", {"model": "m", "messages": content})
