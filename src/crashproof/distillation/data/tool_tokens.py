"""Parts of a conversation's tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.name_trie import allowed_next
from crashproof.distillation.data.tool_spans import CallSpan, RenderedChat
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.text.json_grammar import JsonGrammars, argument_grammar
from crashproof.distillation.text.tokenizer import encode_text

__all__ = ["ARGUMENTS", "INTEGRATION", "JSON", "SELECTION", "ToolTokens", "tool_tokens"]

SELECTION = 1
"""From the start of a turn, or the end of the call before, to the end of a called tool's name."""
ARGUMENTS = 2
"""From the end of a name to the end of its arguments; for the last call of a turn, to the end of the turn."""
JSON = 4
"""The arguments alone."""
INTEGRATION = 8
"""What an answer restates of a tool's result."""

_MAX_BYTES_AFTER = 32
"""Text after the arguments that one token could cover together with their end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTokens:
    """The tokens of one conversation."""

    ids: list[int]
    is_learned: list[bool]
    """Whether the assistant writes it."""
    parts: list[int]
    """The sum of the parts of each token."""
    choices: dict[int, list[int]]
    """Tokens of names where more than one offered name could continue: the ids that spell one."""
    grammars: list[tuple[int, int, str]]
    """For each call: its first token, the one after its last, and their grammar."""

    def labels(self) -> list[int]:
        """The ids; `IGNORED` for tokens that are not learned."""
        return [token if learned else IGNORED for token, learned in zip(self.ids, self.is_learned, strict=True)]

    def end_of_calls(self) -> int:
        """The index after the last token of a call, or of the end of its turn; 0 without calls."""
        parts = enumerate(self.parts, 1)
        return max((end for end, part in parts if part & (SELECTION | ARGUMENTS | JSON)), default=0)

    def first(self, num: int) -> ToolTokens:
        """The first tokens alone; calls are among them or behind them."""
        return ToolTokens(
            ids=self.ids[:num],
            is_learned=self.is_learned[:num],
            parts=self.parts[:num],
            choices={place: ids for place, ids in self.choices.items() if place < num},
            grammars=[each for each in self.grammars if each[1] <= num],
        )


def tool_tokens(
    chat: RenderedChat,
    offered: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    grammars: JsonGrammars,
    *,
    ends_with_call: bool,
) -> ToolTokens:
    """The tokens of a conversation and their parts.

    Args:
        chat: A rendered conversation.
        offered: The names of all tools that can be called.
        tokenizer: The student's.
        grammars: For the same tokenizer.
        ends_with_call: For a conversation with one call: end after that turn, and learn nothing before it.

    Raises:
        ValueError: The tool's grammar does not allow the arguments, or the tokens do not spell them.
    """
    tokens = _Tokens(chat.text, tokenizer)
    turns = [chat.calls[-1].turn] if ends_with_call else chat.turns
    length = tokens.overlapping(turns[-1]).stop if ends_with_call else len(tokens.ids)
    is_learned, parts = [False] * len(tokens.ids), [0] * len(tokens.ids)
    choices: dict[int, list[int]] = {}
    for turn in turns:
        of_turn = tokens.overlapping(turn)
        for place in of_turn:
            is_learned[place] = True
        calls = [call for call in chat.calls if call.turn == turn]
        at = of_turn.start
        for number, call in enumerate(calls):
            end_of_name = tokens.end_of(call.name)
            arguments = tokens.overlapping(call.arguments)
            end = of_turn.stop if number == len(calls) - 1 else arguments.stop
            _add(parts, range(at, end_of_name), SELECTION)
            _add(parts, range(end_of_name, end), ARGUMENTS)
            _add(parts, arguments, JSON)
            choices |= _choices(tokens, call, offered)
            at = max(end, end_of_name)
    for span in chat.restated:
        _add(parts, tokens.overlapping(span), INTEGRATION)
    return ToolTokens(
        ids=tokens.ids[:length],
        is_learned=is_learned[:length],
        parts=parts[:length],
        choices=choices,
        grammars=[_grammar(tokens, call, grammars) for call in chat.calls],
    )


class _Tokens:
    """A text's tokens and the characters that each covers."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerFast) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.ids, spans = encode_text(tokenizer, text)
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]

    def overlapping(self, span: tuple[int, int]) -> range:
        """The tokens that cover a character of a span."""
        return range(bisect_right(self._ends, span[0]), bisect_left(self._starts, span[1]))

    def end_of(self, span: tuple[int, int]) -> int:
        """The index after the first token that shows that a span has ended."""
        return min(bisect_right(self._ends, span[1]) + 1, len(self.ids))


def _add(parts: list[int], places: range, part: int) -> None:
    for place in places:
        parts[place] |= part


def _choices(tokens: _Tokens, call: CallSpan, offered: Sequence[str]) -> dict[int, list[int]]:
    """The allowed ids at the tokens of a call's name, where there is more than one."""
    # A turn alone usually has the same tokens as in the whole text, and is shorter.
    for start, end in (call.turn, (0, len(tokens.text))):
        first = tokens.overlapping((start, end)).start
        length = tokens.end_of(call.name) - first
        spelled = {name: _spelled(tokens, call, name, start, end) for name in offered}
        chosen = spelled[call.call.name]
        if chosen == tokens.ids[first : first + length]:
            allowed = allowed_next(chosen, list(spelled.values()))
            return {first + place: ids for place, ids in enumerate(allowed) if len(ids) > 1}
    raise AssertionError("the same text has the same tokens")


def _spelled(tokens: _Tokens, call: CallSpan, name: str, start: int, end: int) -> list[int]:
    """The tokens from `start` to the end of the name, with this name in the call's place."""
    text = tokens.text[start : call.name[0]] + name + tokens.text[call.name[1] : end]
    with_name = _Tokens(text, tokens.tokenizer)
    begin = call.name[0] - start
    return with_name.ids[: with_name.end_of((begin, begin + len(name)))]


def _grammar(tokens: _Tokens, call: CallSpan, grammars: JsonGrammars) -> tuple[int, int, str]:
    """The grammar of the tokens of the arguments, checked against them."""
    of_arguments = tokens.overlapping(call.arguments)
    first, end = of_arguments.start, of_arguments.stop
    ids = tokens.ids[first:end]
    spelled = grammars.bytes_of(ids)
    arguments = tokens.text[slice(*call.arguments)].encode()
    at = spelled.find(arguments)
    if at < 0:
        raise ValueError(f"the tokens of the arguments of {call.call.name} do not spell them")
    after = spelled[at + len(arguments) :]
    for token in tokens.ids[end : tokens.overlapping(call.turn).stop]:
        if grammars.is_special(token) or len(after) >= _MAX_BYTES_AFTER:
            break
        after += grammars.bytes_of([token])
    grammar = argument_grammar(call.call.schema, before=spelled[:at].decode(), after=after.decode(errors="ignore"))
    num_accepted = grammars.num_accepted(grammar, ids)
    if num_accepted < len(ids):
        accepted = grammars.bytes_of(ids[:num_accepted]).decode(errors="replace")
        raise ValueError(
            f"the schema of {call.call.name}, as llguidance reads it, does not allow what its arguments contain "
            f"after {accepted[-60:]!r}"
        )
    return first, end, grammar
