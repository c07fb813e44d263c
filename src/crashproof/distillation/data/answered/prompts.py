"""Prompts of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crashproof.data_files.reader import digest_files
from crashproof.data_files.record import Place
from crashproof.data_files.selection import select_files
from crashproof.errors import DataError
from crashproof.samples.messages import Message, read_messages
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.rules import SampleRules
from crashproof.samples.tally import Tally
from crashproof.teacher.jobs.prompts import Prompt, read_prompts

__all__ = ["PromptSource", "load_prompts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """The prompts of a training run, before any answer."""

    path: Path
    prompts: list[Prompt]
    """As the teacher is asked."""
    chats: list[list[Message]]
    """Their messages as the student reads them."""
    sha256: str

    def documents(self) -> list[str]:
        """All text, for training a tokenizer."""
        return [str(message.get("content") or "") for chat in self.chats for message in chat]

    def place(self, index: int) -> Place:
        """What errors name as the place of a prompt."""
        place = self.prompts[index].place
        assert place is not None, "prompts are read from files"
        return place

    def only(self, places: Sequence[int]) -> PromptSource:
        """The same with these prompts alone, by their places."""
        chats = [self.chats[place] for place in places]
        return replace(self, prompts=[self.prompts[place] for place in places], chats=chats)


def load_prompts(path: Path, rules: SampleRules | None = None, *, split: str | None = None) -> PromptSource:
    """Read the prompts of a training run; those that a student cannot read are left out, and never asked.

    Raises:
        DataError: The file is missing or empty, or a line is malformed; names the line.
    """
    rules = rules or SampleRules()
    tally = Tally(str(path))
    prompts, chats = [], []
    for prompt in read_prompts(path, split=split):
        assert prompt.place is not None, "prompts are read from files"
        try:
            chat = read_messages(prompt.messages, rules)
        except LeftOut as problem:
            tally.leave_out(problem, prompt.place)
            continue
        except InvalidSample as error:
            raise error.at(prompt.place) from error
        prompts.append(prompt)
        chats.append(chat.messages)
        tally.forms["prompts"] += 1
        tally.notes.update(chat.notes)
    if not prompts:
        raise tally.nothing_left() or DataError(path, "it contains no prompts")
    tally.report()
    return PromptSource(path=path, prompts=prompts, chats=chats, sha256=digest_files(select_files(path, split=split)))
