"""Lines with a better and a worse answer."""

from __future__ import annotations

from typing import Any

from crashproof.samples.problems import InvalidSample, LeftOut
from crashproof.samples.rules import Preferences, SampleRules
from crashproof.samples.sample import Fields, ReadSample, answered, chat, without

__all__ = ["is_judged", "is_openai_pair", "is_pair", "read_judged", "read_openai_pair", "read_pair"]

_REFUSED = "it is a pair of a better and a worse answer, and this recipe compares none"
_REFUSED_HINT = (
    "Set data.preferences to chosen to learn the better answers alone, or use distill_answer_generation, which "
    "compares them."
)
_PAIR_HINT = 'A pair is {"prompt", "chosen", "rejected"}, each of them text or messages.'


def is_pair(line: Fields) -> bool:
    """Whether a line is TRL's preference form."""
    return "chosen" in line and "rejected" in line


def read_pair(line: Fields, rules: SampleRules) -> ReadSample:
    """TRL's preference form, with the prompt apart or as what both conversations begin with."""
    others = without(line, ("prompt", "chosen", "rejected", "messages", "tools"))
    return _read(line.get("prompt"), line["chosen"], line["rejected"], line.get("tools"), others, rules)


def is_openai_pair(line: Fields) -> bool:
    """Whether a line is of OpenAI's preference fine-tuning."""
    return "preferred_output" in line and isinstance(line.get("input"), dict)


def read_openai_pair(line: Fields, rules: SampleRules) -> ReadSample:
    """A line of OpenAI's preference fine-tuning."""
    asked, better, worse = line["input"], line["preferred_output"], line.get("non_preferred_output")
    others = without(line, ("input", "preferred_output", "non_preferred_output"))
    return _read(asked.get("messages"), better, worse, asked.get("tools"), others, rules)


def is_judged(line: Fields) -> bool:
    """Whether a line is TRL's form of an answer that is good or not."""
    return isinstance(line.get("label"), bool) and "completion" in line


def read_judged(line: Fields, rules: SampleRules) -> ReadSample:
    """TRL's form of an answer that is good or not; for a recipe that compares, its quality is 1 or 0."""
    is_good, others = line["label"], without(line, ("prompt", "completion", "label", "tools"))
    if rules.preferences is Preferences.REFUSE:
        raise InvalidSample('it is an answer with a "label", good or not, and this recipe judges none', _REFUSED_HINT)
    if rules.preferences is Preferences.CHOSEN and not is_good:
        raise LeftOut("the label says that the answer is a bad one", "Only the good ones are learned.")
    if rules.preferences is Preferences.PAIRS:
        others["quality"] = float(is_good)
    return _behind(line.get("prompt"), line["completion"], line.get("tools"), others, rules)


def _read(
    prompt: object, chosen: Any, rejected: Any, tools: object, others: dict[str, Any], rules: SampleRules
) -> ReadSample:
    if rules.preferences is Preferences.REFUSE:
        raise InvalidSample(_REFUSED, _REFUSED_HINT)
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        prompt = _common(chosen, rejected)
    if isinstance(prompt, list):
        chosen, rejected = _behind_prompt(prompt, chosen), _behind_prompt(prompt, rejected)
    if rules.preferences is Preferences.PAIRS:
        others["rejected"] = _last_text(rejected)
    return _behind(prompt, chosen, tools, others, rules)


def _behind(prompt: object, answer: object, tools: object, others: dict[str, Any], rules: SampleRules) -> ReadSample:
    if isinstance(answer, str) and not isinstance(prompt, list):
        return answered(prompt, answer, others, rules)
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if not isinstance(before, list) or not isinstance(turns, list):
        raise InvalidSample("its prompt and answers are neither text nor messages", _PAIR_HINT)
    return chat([*before, *turns], tools, others, rules, learned_from=len(before))


def _common(chosen: list[Any], rejected: list[Any]) -> list[Any]:
    """The messages with which both begin."""
    num = 0
    while num < min(len(chosen), len(rejected)) and chosen[num] == rejected[num]:
        num += 1
    return chosen[:num]


def _behind_prompt(prompt: list[Any], answer: Any) -> Any:
    """An answer without the prompt, where it repeats it."""
    repeats = isinstance(answer, list) and answer[: len(prompt)] == prompt
    return answer[len(prompt) :] if repeats else answer


def _last_text(answer: Any) -> object:
    """The text of a worse answer."""
    if not isinstance(answer, list):
        return answer
    last = answer[-1] if answer and isinstance(answer[-1], dict) else {}
    return last.get("content", last.get("value"))
