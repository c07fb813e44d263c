from __future__ import annotations

import pytest
import yaml

from crashproof.strict_yaml import StrictLoader, TextLoader

LOADERS = pytest.mark.parametrize("loader", [StrictLoader, TextLoader], ids=["strict", "text"])


@LOADERS
def test_a_duplicate_key_is_an_error(loader):
    with pytest.raises(yaml.YAMLError, match="duplicate key 'a'"):
        yaml.load("b: {a: 1, a: 2}", Loader=loader)


@LOADERS
def test_code_is_not_run(loader):
    content = "a: !!python/object/apply:os.getcwd []"

    if loader is TextLoader:
        assert {"a": []} == yaml.load(content, Loader=loader)
    else:
        with pytest.raises(yaml.YAMLError):
            yaml.load(content, Loader=loader)


def test_a_date_that_is_none_is_an_error_of_yaml():
    with pytest.raises(yaml.YAMLError, match="month"):
        yaml.load("a: 2025-13-01", Loader=StrictLoader)


def test_values_are_what_yaml_says():
    assert {"a": 0.1, "b": [1, None]} == yaml.load("a: 0.1\nb: [1, null]", Loader=StrictLoader)


@pytest.mark.parametrize("text", ["0.10", "1_000", "1e-3", "2025-01-01", "null", "yes", ".nan"])
def test_text_stays_as_it_was_written(text):
    assert {"a": text} == yaml.load(f"a: {text}", Loader=TextLoader)
