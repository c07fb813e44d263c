from __future__ import annotations

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from crashproof.cli.app import app

OBSOLETE = re.compile(
    r"\b(seal(ed)?|whole|set aside|rotten|glued|good-bye|without a word|patience|behind the training|no numbers"
    r"|have an end|of no use|watchers?|lost most|unbroken|a piece|doors?|beds?|goes on|so often|anew)\b",
    re.IGNORECASE,
)
"""Words that have a plainer term."""


@pytest.mark.parametrize("command", [[], *([name] for name in get_command(app).commands)], ids=" ".join)
def test_help_is_in_plain_words(command: list[str]) -> None:
    said = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "100"})
    # The option has its name from the issue that asked for it.
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", said.output).split()).replace("--patience", "")

    assert 0 == said.exit_code
    assert [] == [found[0] for found in OBSOLETE.finditer(words)]
    assert not re.search(r"(--[a-z-]+|[]>]) +(Of|As|So|Else|Also)\b", words)


@pytest.mark.parametrize("name", get_command(app).commands)
def test_every_parameter_has_a_help_text_that_is_a_sentence(name: str) -> None:
    parameters = get_command(app).commands[name].params
    texts = [text for each in parameters if each.name != "help" if (text := getattr(each, "help", None)) is not None]

    assert len(texts) == len([each for each in parameters if each.name != "help"])
    assert [] == [text for text in texts if not text[0].isupper() or not text.endswith((".", "…"))]
