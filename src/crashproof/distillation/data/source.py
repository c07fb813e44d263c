"""Samples of files, before any tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from crashproof.data_files.reader import digest_files, read_records
from crashproof.data_files.record import Place, Record
from crashproof.data_files.selection import select_files
from crashproof.distillation.settings.data import DataConfig
from crashproof.errors import DataError
from crashproof.samples.forms import read_sample
from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.rules import Preferences, SampleRules
from crashproof.samples.tally import Tally

__all__ = ["Check", "Source", "place_of", "rules_of", "text_of"]

Check = Callable[[dict[str, Any]], None]
"""A recipe's own check of a sample; raises `InvalidSample` or `LeftOut`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Samples before any tokenizer."""

    samples: list[dict[str, Any]]
    """As `ReadSample.fields` has them, each with the number of its line as `line`."""
    sha256: str
    path: Path | None
    """None for built-in text and generated tasks; the first of several."""

    @classmethod
    def read(
        cls,
        paths: Path | Sequence[Path],
        *,
        check: Check,
        rules: SampleRules | None = None,
        split: str | None = None,
    ) -> Self:
        """Read files in whatever form they are; what is left out or changed is counted in the log.

        Args:
            paths: Files or folders.
            check: Called with each sample.
            rules: What of a line is learned.
            split: The split to read where a folder has several.

        Raises:
            DataError: A file is missing or holds no sample, or a record is malformed; names its place.
        """
        rules = rules or SampleRules()
        files = select_files(paths, split=split)
        first = paths if isinstance(paths, Path) else paths[0]
        tally = Tally(", ".join(map(str, [paths] if isinstance(paths, Path) else paths)))
        samples = [sample for file in files for sample in _samples(file, len(files) > 1, rules, check, tally)]
        if not samples:
            raise tally.nothing_left() or DataError(
                first, "it contains no samples", hint="Put one JSON object on each line."
            )
        tally.report()
        sha256, part = digest_files(files), rules.digest_part()
        if part:
            sha256 = hashlib.sha256(f"{sha256} {part}".encode()).hexdigest()
        return cls(samples=samples, sha256=sha256, path=first)

    @classmethod
    def generated(cls, samples: list[dict[str, object]]) -> Self:
        """The samples of a generated task."""
        return cls(samples=samples, sha256=hashlib.sha256(json.dumps(samples).encode()).hexdigest(), path=None)

    def only(self, places: Sequence[int]) -> Self:
        """The same with these samples alone, by their places."""
        return dataclasses.replace(self, samples=[self.samples[place] for place in places])

    @property
    def where(self) -> Path:
        """What errors name as the place of all samples."""
        return self.path or Path("the generated task")

    def place(self, sample: dict[str, Any]) -> Place:
        """What errors name as the place of a sample."""
        return place_of(sample, self.where)

    def documents(self) -> list[str]:
        """All text, for training a tokenizer."""
        return [text_of(sample) for sample in self.samples]

    def split(self, held_out: float) -> tuple[Self, Self]:
        """The training part, and an evenly spread share of the lines that is held out from it."""
        num_held_out = round(len(self.samples) * held_out)
        places = {int((place + 0.5) * len(self.samples) / num_held_out) for place in range(num_held_out)}
        return tuple(  # type: ignore[return-value]
            dataclasses.replace(
                self,
                samples=[sample for place, sample in enumerate(self.samples) if (place in places) is is_held_out],
                sha256=hashlib.sha256(f"{self.sha256} {held_out} {is_held_out}".encode()).hexdigest(),
            )
            for is_held_out in (False, True)
        )


def rules_of(config: DataConfig, *, compares: bool = False) -> SampleRules:
    """The rules that a config states; with `compares` the recipe reads pairs."""
    return SampleRules(
        learns_reasoning=config.learn_reasoning,
        learns_refusals=config.learn_refusals,
        preferences=Preferences.PAIRS if compares else Preferences(config.preferences),
    )


def place_of(sample: dict[str, Any], where: Path) -> Place:
    """The place of a sample of a file."""
    place: Place = sample.get(_PLACE) or Place(path=where, number=sample["line"])
    return place


def text_of(sample: dict[str, Any]) -> str:
    """Everything in a sample that is text."""
    if "messages" not in sample:
        return f"{sample['prompt']}{sample['answer']}" if "prompt" in sample else str(sample["text"])
    parts = [json.dumps(tool, ensure_ascii=False) for tool in sample.get("tools") or ()]
    for message in sample["messages"]:
        calls = message.get("tool_calls") or ()
        texts = [message.get("reasoning_content"), message["content"]]
        parts += [text for text in texts if text is not None]
        parts += [json.dumps(call["function"], ensure_ascii=False) for call in calls]
    return "\n".join(parts)


_PLACE = "_place"
"""Key of a place that is not a line of the only file."""


def _samples(
    file: Path, is_one_of_several: bool, rules: SampleRules, check: Check, tally: Tally
) -> Iterator[dict[str, Any]]:
    num_before = tally.num_read()
    for record in read_records(file):
        try:
            sample = _sample(record, rules, check, tally)
        except LeftOut as problem:
            tally.leave_out(problem, record.place)
            continue
        except InvalidSample as error:
            raise error.at(record.place) from error
        if is_one_of_several or record.place.unit != "line":
            sample[_PLACE] = record.place
        yield sample
    if is_one_of_several and tally.num_read() == num_before:
        tally.empty.append(file.name)


def _sample(record: Record, rules: SampleRules, check: Check, tally: Tally) -> dict[str, Any]:
    form, read = read_sample(record.content, rules)
    sample = read.fields | {"line": record.place.number}
    check(sample)
    tally.forms[form.name] += 1
    tally.notes.update(read.notes)
    return sample
