from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashproof.rules.identity import canonical_config, changed_keys, config_hash, is_another_run
from crashproof.rules.secrets.texts import without_secrets


class Optimizer(enum.Enum):
    ADAMW = "adamw"


leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5)
configs = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    ),
    max_size=4,
)


@pytest.mark.parametrize(
    "value, expected",
    [
        pytest.param((1, 2), [1, 2], id="tuple"),
        pytest.param({3, 1, 2}, [1, 2, 3], id="set"),
        pytest.param(frozenset({"b", "a"}), ["a", "b"], id="frozen-set"),
        pytest.param(PurePosixPath("data/train.jsonl"), "data/train.jsonl", id="path"),
        pytest.param(Optimizer.ADAMW, "Optimizer.ADAMW", id="enum"),
        pytest.param(math.nan, "nan", id="nan"),
        pytest.param(-math.inf, "-inf", id="infinity"),
        pytest.param(np.float64(0.5), 0.5, id="numpy-double"),
        pytest.param(np.float32(0.5), 0.5, id="numpy-single"),
        pytest.param(np.int64(7), 7, id="numpy-int"),
        pytest.param(OrderedDict(b=1), {"b": 1}, id="other-mapping"),
        pytest.param({1: "one"}, {"1": "one"}, id="key-that-is-no-text"),
        pytest.param(None, None, id="none"),
        pytest.param(True, True, id="bool"),
        pytest.param(b"bytes", "b'bytes'", id="bytes"),
    ],
)
def test_a_config_becomes_plain_json_values(value, expected):
    assert {"key": expected} == canonical_config({"key": value})


@settings(max_examples=100)
@given(configs)
def test_a_canonical_config_is_read_back_as_itself(config):
    canonical = canonical_config(config)

    assert canonical == json.loads(json.dumps(canonical, allow_nan=False))
    assert [] == changed_keys(canonical, canonical)


@settings(max_examples=100)
@given(configs)
def test_the_hash_is_the_same_in_every_order_of_the_keys(config):
    canonical = canonical_config(config)
    reordered = dict(reversed(canonical.items()))

    assert config_hash(canonical) == config_hash(reordered)


def test_the_hash_tells_configs_apart():
    assert config_hash({"lr": 0.1}) != config_hash({"lr": 0.2})


@pytest.mark.parametrize(
    "before, after, expected",
    [
        pytest.param({"a": 1}, {"a": 1}, [], id="same"),
        pytest.param(
            {"train": {"batch_size": 32}}, {"train": {"batch_size": 64}}, ["train.batch_size: 32 → 64"], id="value"
        ),
        pytest.param({}, {"lr": 0.1}, ["lr: (absent) → 0.1"], id="key-added"),
        pytest.param({"lr": 0.1}, {}, ["lr: 0.1 → (absent)"], id="key-removed"),
        pytest.param({"b": 1, "a": "x"}, {"b": 2, "a": "y"}, ['a: "x" → "y"', "b: 1 → 2"], id="sorted-by-key"),
        pytest.param({"a": [1, 2]}, {"a": [2, 1]}, ["a: [1,2] → [2,1]"], id="order-of-a-list"),
        pytest.param({"a": {}}, {}, [], id="empty-section"),
        pytest.param({"a": None}, {}, [], id="null-is-absent"),
        pytest.param({"a": 0}, {}, ["a: 0 → (absent)"], id="zero-is-not-absent"),
        pytest.param({"a": None}, {"a": False}, ["a: null → false"], id="null-is-not-false"),
        pytest.param({"a": {"b": 1}}, {"a": 2}, ["a: (absent) → 2", "a.b: 1 → (absent)"], id="section-to-value"),
    ],
)
def test_what_makes_two_configs_two_runs_is_named(before, after, expected):
    assert expected == changed_keys(before, after)


@pytest.mark.parametrize(
    "key", ["progress", "logging", "log", "output_dir", "run_name", "resume", "steps", "total_steps", "max_steps"]
)
def test_top_level_keys_that_cannot_change_the_result_do_not_matter(key):
    assert [] == changed_keys({key: 1}, {key: 2})


@pytest.mark.parametrize("section", ["train", "training", "trainer"])
@pytest.mark.parametrize("key", ["steps", "total_steps", "max_steps", "num_steps", "train_steps"])
def test_how_long_to_train_does_not_matter(section, key):
    assert [] == changed_keys({section: {key: 10}}, {section: {key: 20}})


@pytest.mark.parametrize(
    "before, after",
    [
        pytest.param({"schedule": {"steps": 10}}, {"schedule": {"steps": 20}}, id="length-of-a-schedule"),
        pytest.param({"train": {"progress": 1}}, {"train": {"progress": 2}}, id="section-name-further-down"),
        pytest.param({"progress_ratio": 1}, {"progress_ratio": 2}, id="longer-name"),
    ],
)
def test_similar_keys_elsewhere_do_matter(before, after):
    assert 1 == len(changed_keys(before, after))


@pytest.mark.parametrize(
    "key",
    [
        "api_key",
        "API_KEY",
        "openai_api_key",
        "x-api-key",
        "apiKey",
        "password",
        "db_password",
        "hf_token",
        "Authorization",
    ],
)
def test_secrets_are_hidden_wherever_they_stand(key):
    canonical = canonical_config({"teacher": [{key: "hunter2"}]})

    assert {"teacher": [{key: "(secret)"}]} == canonical


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"api_key": ""}, id="empty"),
        pytest.param({"api_key": None}, id="none"),
        pytest.param({"api_key_env": "OPENAI_API_KEY"}, id="name-of-a-variable"),
        pytest.param({"pad_token": "<pad>"}, id="a-token-that-is-none"),
        pytest.param({"secret_santa": "Ann"}, id="another-word"),
    ],
)
def test_what_is_no_secret_is_kept(config):
    assert config == canonical_config(config)


def test_a_password_in_an_address_is_hidden():
    canonical = canonical_config({"store": "postgresql://ann:hunter2@db.example/answers"})

    assert {"store": "postgresql://(secret)@db.example/answers"} == canonical


OLD, NEW = "sk-proj-0123456789abcdefghij", "sk-proj-jihgfedcba9876543210"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda secret: {"train": {"api_key": secret}}, id="under-its-name"),
        pytest.param(lambda secret: {"train": {"api_key": ["--api-key", secret]}}, id="in-a-list-under-its-name"),
        pytest.param(lambda secret: {"train": {"api_key": f"https://a:{secret}@host/"}}, id="in-an-address"),
        pytest.param(lambda secret: {"train": {"api_key": {"value": secret, "region": "eu"}}}, id="in-a-section"),
    ],
)
def test_a_new_secret_is_noticed_and_not_shown_and_makes_no_new_run(make):
    before, after = canonical_config(make(OLD)), canonical_config(make(NEW))

    assert ["train.api_key: changed (hidden)"] == changed_keys(before, after)
    assert not is_another_run(before, after)
    assert not any(part in json.dumps([before, after]) for part in (OLD[8:], NEW[8:]))


def test_a_new_secret_inside_a_command_line_is_noticed():
    before, after = ({"argv": f"train --lr 1 --api-key {secret}"} for secret in (OLD, NEW))

    assert ["argv: changed (hidden)"] == changed_keys(before, after)
    assert ['argv: "train --lr 1 --api-key (secret)" → "train --lr 2 --api-key (secret)"'] == changed_keys(
        before, {"argv": f"train --lr 2 --api-key {NEW}"}
    )


def test_a_short_secret_has_no_digest_that_could_be_guessed_from():
    before, after = canonical_config({"api_key": "hunter2"}), canonical_config({"api_key": "hunter3"})

    assert {"api_key": "(secret)"} == before
    assert [] == changed_keys(before, after)
    assert config_hash(before) == config_hash(after)


@pytest.mark.parametrize(
    "before, after",
    [
        ("pretrained=gpt2,tokenizer=gpt2-xl", "pretrained=gpt2,tokenizer=gpt2"),
        ("--max_tokens=4096 --seed 1", "--max_tokens=2048 --seed 1"),
        ("pad_token=<pad>", "pad_token=<eos>"),
    ],
)
def test_a_setting_inside_a_text_makes_another_run(before, after):
    assert is_another_run({"model_args": before}, {"model_args": after})
    assert [f'model_args: "{before}" → "{after}"'] == changed_keys({"model_args": before}, {"model_args": after})


def test_what_an_earlier_version_kept_in_clear_is_neither_shown_nor_a_change():
    assert [] == changed_keys({"pw": "hunter2"}, canonical_config({"pw": "hunter2"}))
    assert "hunter2" not in str(changed_keys({"pw": "hunter2", "lr": 1}, canonical_config({"lr": 1})))


def test_names_that_are_secrets_stay_apart_once_hidden():
    config = {f"https://{name}:pw@host/": name for name in ("a", "b")}

    assert {"https://(secret)@host/": "a", "https://(secret)@host/'": "b"} == canonical_config(config)


@settings(max_examples=100)
@given(configs)
def test_a_canonical_config_is_its_own_canonical_config(config):
    canonical = canonical_config(config)

    assert canonical == canonical_config(canonical)


@pytest.mark.parametrize(
    "text, expected",
    [
        pytest.param("Invalid key sk-proj-abcdef123456", "Invalid key (secret)", id="openai"),
        pytest.param("token hf_abcdefghijkl refused", "token (secret) refused", id="hugging-face"),
        pytest.param("Authorization: Bearer abc.def", "Authorization: Bearer (secret)", id="bearer"),
        pytest.param("https://ann:hunter2@api.example/v1", "https://(secret)@api.example/v1", id="address"),
        pytest.param("the task-force was asked", "the task-force was asked", id="ordinary-words"),
        pytest.param("no file na\udcefve.txt", "no file na\\udcefve.txt", id="half-a-character"),
        pytest.param("http://localhost:8000/v1", "http://localhost:8000/v1", id="port"),
    ],
)
def test_what_looks_like_a_key_is_hidden_in_text(text, expected):
    assert expected == without_secrets(text)


def test_an_object_is_the_same_in_every_process():
    class Activation:
        pass

    assert "0x" not in str(canonical_config({"activation": Activation(), "function": lambda x: x}))


@pytest.mark.parametrize(
    "text",
    [
        "401 Authorization: Basic c2VjcmV0",
        "AWS_SECRET_ACCESS_KEY=c2VjcmV0",
        "password='c2VjcmV0'",
        "x-api-key: c2VjcmV0",
        '{"password": "c2VjcmV0"}',
        "https://host/path?api_key=c2VjcmV0",
        "https://host/path?token=c2VjcmV0",
    ],
)
def test_assigned_secrets_are_hidden_in_text_and_in_configs(text):
    assert "c2VjcmV0" not in without_secrets(text)
    assert "c2VjcmV0" not in str(canonical_config({"env": [text]}))


def test_a_text_of_one_long_word_is_searched_in_no_time():
    """Each of its letters could be the beginning of a name; a server's error or a config may hold such a word."""
    word = "x" * 1_000_000

    assert word == without_secrets(word) == canonical_config({"blob": word})["blob"]
    assert f"{word}_api_key=(secret)" == without_secrets(f"{word}_api_key=hunter2")


@pytest.mark.parametrize("key", ["webhook", "slack_webhook", "webhook_url", "alertWebhook"])
def test_the_address_of_a_webhook_is_a_secret(key):
    assert {key: "(secret bc57)"} == canonical_config({key: "https://hooks.example.org/services/T0/B0/xyz"})
