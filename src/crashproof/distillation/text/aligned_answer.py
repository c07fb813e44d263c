"""A teacher's tokens in the student's vocabulary."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from crashproof.data_files.record import Place
from crashproof.distillation.text.server_logprobs import TokenLogprob, read_logprobs
from crashproof.distillation.text.token_bytes import BytesToIds, token_bytes
from crashproof.distillation.text.tokenizer import encode_text
from crashproof.errors import ModelMismatch

__all__ = ["AlignedAnswer", "FitCounter", "LogprobsMisfit", "TokenAligner"]

Entries = list[tuple[int, float]]

log = logging.getLogger("crashproof")

_END_OF_THOUGHT = b"</think>"
_FOREIGN_MARK = re.compile(rb"<[|\xef]\S+>|</s>|<end_of_turn>|<eos>")
"""Special tokens of common vocabularies."""


_ENOUGH_MISFITS = 8
"""If as many answers do not fit and not one does, no later one will."""
_NUM_NAMED = 8
"""Lines that are reported one by one."""


class LogprobsMisfit(ValueError):
    """The log-probabilities of an answer do not belong to its text, or not to the student's tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedAnswer:
    """The tokens of an answer, as the student has them."""

    ids: list[int]
    entries: list[Entries]
    """For each of them, the ids and log-probabilities that the teacher had for its place."""
    end_entries: Entries
    """The same for the end mark behind the answer; empty if the server does not send it."""
    takes_space: bool = False
    """The first token contains the space before the answer, as with SentencePiece."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens of an answer, and the ids that they are for the student."""

    ids: list[int]
    tokens: Sequence[TokenLogprob]


class TokenAligner:
    """Finds a teacher's tokens in the vocabulary of a student, by their bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, top_k: int) -> None:
        """`top_k` is the number of entries that are kept of each distribution.

        Raises:
            ModelMismatch: The bytes of the student's tokens are unknown.
        """
        self._tokenizer = tokenizer
        self._top_k = top_k
        self._tokens = token_bytes(tokenizer)
        self._ids = BytesToIds(self._tokens)
        self._special_ids = {
            token.content: number
            for number, token in enumerate(self._tokens)
            if token is not None and token.is_special
        }

    def align(self, sent: object, said: str, *, end_id: int | None) -> AlignedAnswer:
        """Align the log-probabilities of an answer with its text.

        Args:
            sent: As the server sent them.
            said: The text of the answer that is learned; thoughts before it are passed over.
            end_id: The token that is learned behind it.

        Raises:
            LogprobsMisfit: They do not belong together; the message says why.
        """
        try:
            tokens = read_logprobs(sent)
        except ValueError as error:
            raise LogprobsMisfit(str(error)) from error
        if tokens is None:
            raise LogprobsMisfit("it has no log-probabilities")
        text = said.encode()
        tokens, ends = self._split_ends(tokens, text)
        tokens = self._without_thoughts(tokens, said)
        if self._is_spelled(tokens, said):
            # The text shows U+FFFD where these are no whole characters.
            text = self._joined(tokens)
        takes_space = bool(tokens) and self._takes_space(tokens[0], text)
        pieces = self._pieces(tokens, b" " + text if takes_space else text)
        return AlignedAnswer(
            ids=[number for piece in pieces for number in piece.ids],
            entries=[
                self._entries(token, number)
                for piece in pieces
                for number, token in zip(piece.ids, piece.tokens, strict=True)
            ],
            end_entries=self._entries(ends[0], end_id) if ends and end_id is not None else [],
            takes_space=takes_space,
        )

    def _split_ends(self, tokens: list[TokenLogprob], said: bytes) -> tuple[list[TokenLogprob], list[TokenLogprob]]:
        """The tokens of the text, and the special or empty ones behind it.

        A template that strips an answer also strips tokens of white space; a mark then no longer follows directly.
        """
        length = len(tokens)
        while length and self._is_mark(tokens[length - 1]):
            length -= 1
        ends = tokens[length:]
        while length and said and not said[-1:].isspace() and self._is_left_out(tokens[length - 1]):
            length, ends = length - 1, []
        return tokens[:length], ends

    def _is_left_out(self, token: TokenLogprob) -> bool:
        """Whether a last token is no part of the text: white space, or another vocabulary's special token."""
        spelled = self._first_spelling(token)
        return self._is_mark(token) or spelled.isspace() or _FOREIGN_MARK.fullmatch(spelled) is not None

    def _is_mark(self, token: TokenLogprob) -> bool:
        if token.token_id is not None:
            meaning = self._tokens[token.token_id] if token.token_id < len(self._tokens) else None
            return meaning is not None and meaning.is_special
        return all(not spelling or spelling in self._special_ids for spelling in token.spellings)

    def _without_thoughts(self, tokens: list[TokenLogprob], said: str) -> list[TokenLogprob]:
        """The tokens of the answer alone, if the server has put those of its thoughts before them."""
        if self._is_spelled(tokens, said):
            return tokens
        place = next(
            (place for place in reversed(range(len(tokens))) if _END_OF_THOUGHT in self._joined(tokens[place:])), None
        )
        if place is None:
            return tokens
        starts = (start for start in range(place + 1, len(tokens) + 1) if self._is_spelled(tokens[start:], said))
        return tokens[next(starts, 0) :]

    def _is_spelled(self, tokens: list[TokenLogprob], said: str) -> bool:
        return self._joined(tokens).decode(errors="replace") == said

    def _joined(self, tokens: list[TokenLogprob]) -> bytes:
        return b"".join(map(self._first_spelling, tokens))

    def _takes_space(self, token: TokenLogprob, said: bytes) -> bool:
        """Whether a text goes on with a token only if a space is put before it."""
        return self._content_at(token, said, 0) is None and self._content_at(token, b" " + said, 0) is not None

    def _first_spelling(self, token: TokenLogprob) -> bytes:
        if token.token_id is not None:
            meaning = self._tokens[token.token_id] if token.token_id < len(self._tokens) else None
            return meaning.content if meaning is not None else b""
        return token.spellings[0]

    def _pieces(self, tokens: list[TokenLogprob], said: bytes) -> list[_Piece]:
        pieces: list[_Piece] = []
        at = place = 0
        while place < len(tokens):
            content = self._content_at(tokens[place], said, at)
            if content is not None:
                pieces.append(_Piece([self._id_of(tokens[place], content, place)], tokens[place : place + 1]))
                at, place = at + len(content), place + 1
                continue
            stop = next((after for after in range(place, len(tokens)) if not _is_unknown(tokens[after])), len(tokens))
            end = self._end_of_unknown(tokens[stop:], said, at)
            if stop == place or end is None:
                raise LogprobsMisfit(
                    f"token {place + 1} of its log-probabilities is {self._first_spelling(tokens[place])!r}, and its "
                    f"text goes on with {said[at : at + 12]!r}"
                )
            pieces.append(self._piece_of_unknown(tokens[place:stop], said[at:end], place))
            at, place = end, stop
        if at < len(said):
            raise LogprobsMisfit(f"its log-probabilities end before {said[at : at + 12]!r} in its text")
        return pieces

    def _content_at(self, token: TokenLogprob, said: bytes, at: int) -> bytes | None:
        """The bytes of a token, if the text goes on with them; None if it does not."""
        spellings = token.spellings if token.token_id is None else (self._first_spelling(token),)
        return next((content for content in spellings if content and said.startswith(content, at)), None)

    def _id_of(self, token: TokenLogprob, content: bytes, place: int) -> int:
        found = self._ids.find(content)
        if found is None:
            raise LogprobsMisfit(
                f"it has as token {place + 1} the bytes {content!r}, and the student's tokenizer has no such token"
            )
        return found if token.token_id is None else token.token_id

    def _end_of_unknown(self, behind: list[TokenLogprob], said: bytes, at: int) -> int | None:
        """Where tokens end whose bytes are unknown: where the next known ones begin."""
        known = b""
        for token in behind:
            if _is_unknown(token):
                break
            known += self._first_spelling(token)
        if not behind:
            return len(said)
        place = said.find(known, at)
        return place if place >= 0 else None

    def _piece_of_unknown(self, tokens: list[TokenLogprob], content: bytes, place: int) -> _Piece:
        """Parts of characters, spelled by the student: only the same number of tokens can be the same tokens."""
        try:
            ids = encode_text(self._tokenizer, content.decode()).ids
        except UnicodeDecodeError:
            ids = []
        if len(ids) != len(tokens):
            raise LogprobsMisfit(
                f"tokens {place + 1} to {place + len(tokens)} of its log-probabilities do not tell their bytes, and "
                f"the student spells {content.decode(errors='replace')!r} with {len(ids)} tokens"
            )
        return _Piece(ids, tokens)

    def _entries(self, token: TokenLogprob, taken: int) -> Entries:
        """Ids and log-probabilities; what the student lacks belongs to the rest."""
        known: dict[int, float] = {}
        for each in token.alternatives:
            is_taken = each.logprob == token.logprob and each.spellings == token.spellings
            found = taken if is_taken and each.token_id == token.token_id else self._find(each)
            if found is not None and each.logprob is not None:
                # Two tokens of the teacher can be one of the student.
                known[found] = float(np.logaddexp(known.get(found, -math.inf), each.logprob))
        if taken not in known and token.logprob is not None:
            known[taken] = token.logprob
        return sorted(known.items(), key=lambda entry: -entry[1])[: self._top_k]

    def _find(self, token: TokenLogprob) -> int | None:
        if token.token_id is not None:
            return token.token_id if token.token_id < len(self._tokens) else None
        if token.is_part_of_character:
            return None
        found = (self._ids.find(content) for content in token.spellings)
        ordinary = next((number for number in found if number is not None), None)
        return ordinary if ordinary is not None else self._special_ids.get(token.spellings[0])


class FitCounter:
    """Counts the answers of a file whose log-probabilities fit the student's tokens, and those that are skipped."""

    def __init__(self, *, num_answers: int, all_are_known: bool = False) -> None:
        """If `all_are_known`, an error waits for the last answer; otherwise each further one would be paid for."""
        self._enough = num_answers if all_are_known else min(num_answers, _ENOUGH_MISFITS)
        self._fits: set[Place] = set()
        self._misfits: dict[Place, str] = {}

    def add_fit(self, place: Place) -> None:
        """An answer is learned."""
        self._fits.add(place)

    def add_misfit(self, place: Place, misfit: LogprobsMisfit) -> None:
        """An answer is skipped; the first ones are reported, and the others counted.

        Raises:
            ModelMismatch: Many do not fit, and not one does.
        """
        if place not in self._misfits:
            self._misfits[place] = str(misfit)
            if len(self._misfits) <= _NUM_NAMED:
                log.warning("Skipping the answer to %s: %s.", place, misfit)
        if not self._fits and len(self._misfits) >= self._enough:
            first, reason = next(iter(self._misfits.items()))
            raise ModelMismatch(
                f"None of {len(self._misfits):,} answers has log-probabilities that fit; the first is that to "
                f"{first}: {reason}.",
                hint="Use a student with the teacher's tokenizer and a teacher that returns log-probabilities, or "
                "learn from the text alone with loss.kd 0.",
            )

    def report(self) -> None:
        """Log how many answers were skipped."""
        if self._misfits:
            log.warning(
                "Skipped %d of %d answers: their log-probabilities do not fit.",
                len(self._misfits),
                len(self._misfits) + len(self._fits),
            )


def _is_unknown(token: TokenLogprob) -> bool:
    return token.is_part_of_character or token.spellings == (b"",)
