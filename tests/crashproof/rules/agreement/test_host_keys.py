from __future__ import annotations

import pytest

from crashproof.rules.agreement.host_keys import CONTENT_COUNTS, MAY_DIFFER, comparable_config


def test_values_are_compared_as_json_under_dotted_keys():
    config = {"train": {"steps": 5, "device": "auto"}, "loss": {"layers": {"1": 2}}}

    assert {"train.steps": "5", "train.device": '"auto"', "loss.layers.1": "2"} == comparable_config(config)


@pytest.mark.parametrize("key", CONTENT_COUNTS)
def test_of_a_path_it_counts_only_whether_there_is_one(key):
    section, name = key.split(".")

    given = [comparable_config({section: {name: value}}) for value in ("/a", ["/b", "/c"], None)]

    assert [{key: "a path"}, {key: "a path"}, {key: "null"}] == given


@pytest.mark.parametrize("key", MAY_DIFFER)
def test_what_may_differ_is_left_out_with_all_that_is_in_it(key):
    section, name = key.split(".")

    assert {f"{section}.{name}s": "1"} == comparable_config({section: {name: {"inner": 1}, f"{name}s": 1}})
    assert {} == comparable_config({section: {name: "value"}})


def test_secrets_are_hidden_and_a_new_one_is_noticed():
    one, other = (
        comparable_config({"teacher": {"parameters": {"api_key": key}}})
        for key in ("sk-abcdefghijklmnopqrst1234", "sk-zyxwvutsrqponmlkjihg9876")
    )

    assert one != other
    assert not any("abcdef" in value for value in one.values())
