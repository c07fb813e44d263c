"""Grammars of JSON Schemas over tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

import llguidance.hf
import torch
from llguidance import LLMatcher
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crashproof.errors import ModelMismatch

__all__ = ["JsonGrammars", "argument_grammar", "problem_with_schema"]

_MAX_COMPILED = 1024
# By default, where only one text can follow, the engine allows one tokenization of it only.
_OPTIONS = '%llguidance {"no_forcing": true}\n'
_ENGINE_PREFIX = "failed to compile JSON schema: "


@lru_cache(maxsize=_MAX_COMPILED)
def problem_with_schema(schema: str) -> str | None:
    """Why llguidance cannot compile a JSON Schema, given as JSON, or None."""
    message = LLMatcher.validate_grammar(argument_grammar(schema, before="", after=""))
    if not message:
        return None
    # The engine quotes the whole grammar after its first line.
    return str(message.partition(_ENGINE_PREFIX)[2] or message).partition("\n")[0].strip()


def argument_grammar(schema: str, *, before: str, after: str) -> str:
    """The grammar of arguments between fixed text before and after them.

    A token that covers both the end of the arguments and adjacent text is thus judged exactly.
    """
    literals = [json.dumps(text, ensure_ascii=False) for text in (before, after)]
    rules = f"start: {literals[0]} arguments {literals[1]}\narguments: %json {schema}\n"
    return str(LLMatcher.grammar_from_lark(_OPTIONS + rules))


class JsonGrammars:
    """Compiled grammars over the tokens of one tokenizer, cached."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises `ModelMismatch` if llguidance cannot read the tokenizer."""
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(tokenizer)
        except ValueError as error:
            raise ModelMismatch(
                f"llguidance cannot read the tokenizer {tokenizer.name_or_path or 'in memory'} ({error}).",
                hint="Use models with a fast tokenizer (tokenizer.json), byte-level or SentencePiece.",
            ) from error
        self._compiled = lru_cache(maxsize=_MAX_COMPILED)(self._compile)

    @property
    def num_words(self) -> int:
        """32-bit words of a mask."""
        return (int(self._tokenizer.vocab_size) + 31) // 32

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """The text of tokens in bytes."""
        return bytes(self._tokenizer.decode_bytes(list(ids)))

    def is_special(self, token: int) -> bool:
        """Whether a token is a special token."""
        return bool(self._tokenizer.is_special_token(token))

    def num_accepted(self, grammar: str, ids: Sequence[int]) -> int:
        """How many of the leading tokens the grammar allows."""
        return int(self._compiled(grammar).deep_copy().try_consume_tokens(list(ids)))

    def masks(self, grammar: str, ids: Sequence[int]) -> Tensor:
        """The entries that the grammar allows at the position of each token.

        Returns:
            (tokens, words) of int32 on the CPU: bit v % 32 of word v // 32 is set if entry v is allowed.
        """
        matcher = self._compiled(grammar).deep_copy()
        masks = torch.zeros(len(ids), self.num_words, dtype=torch.int32)
        row_bytes = self.num_words * masks.element_size()
        for place, token in enumerate(ids):
            matcher.unsafe_compute_mask_ptr(masks.data_ptr() + place * row_bytes, row_bytes)
            assert matcher.consume_token(token), "every call was checked against its grammar when it was tokenized"
        return masks

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher
