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


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{number}: &a{number} {{<<: [{', '.join([f'*a{number - 1}'] * 9)}]}}\n" for number in range(1, 12)
)


@LOADERS
@pytest.mark.parametrize(
    "content, words",
    [
        (BOMB, "aliases stand for more than 100,000 values"),
        (MERGES, "aliases stand for more than 100,000 values"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "more than 100 lists and mappings inside each other"),
        ("- " * 20_000, "more than 100 lists and mappings inside each other"),
        ("\n".join(" " * number + "a:" for number in range(2_000)), "more than 100 lists and mappings"),
        ("? " * 20_000, "more than 100 lists and mappings inside each other"),
        ("a: &a [*a]", r"the alias \*a stands for something that it is in"),
    ],
    ids=["aliases", "merges", "flow", "lists", "mappings", "keys", "itself"],
)
def test_a_document_that_would_take_for_ever_is_refused_in_words(loader, content, words):
    with pytest.raises(yaml.YAMLError, match=words):
        yaml.load(content, Loader=loader)


@LOADERS
def test_aliases_of_usual_size_work(loader):
    content = "base: &base {lr: fast, list: &list [a, b]}\nother: {same: *base, more: [*list, *list]}"

    loaded = yaml.load(content, Loader=loader)

    assert [["a", "b"]] * 2 == loaded["other"]["more"]


@LOADERS
def test_many_keys_take_no_time_that_grows_with_their_square(loader):
    content = "".join(f"key{number}: x\n" for number in range(10_000))

    assert 10_000 == len(yaml.load(content, Loader=loader))
    with pytest.raises(yaml.YAMLError, match="duplicate key 'key7'"):
        yaml.load(content + "key7: x", Loader=loader)


@LOADERS
def test_a_list_is_no_key(loader):
    with pytest.raises(yaml.YAMLError, match="unhashable"):
        yaml.load("? [a]\n: x", Loader=loader)
