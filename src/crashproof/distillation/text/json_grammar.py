"""Which tokens a JSON Schema still allows."""

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

_MOST_COMPILED = 1024
# Where only one text can follow, the engine would else allow one token of it, and not each that begins it.
_OPTIONS = '%llguidance {"no_forcing": true}\n'
_ENGINE_SAYS = "failed to compile JSON schema: "


@lru_cache(maxsize=_MOST_COMPILED)
def problem_with_schema(schema: str) -> str | None:
    """Why llguidance cannot compile a JSON Schema, given as JSON; None where it can."""
    message = LLMatcher.validate_grammar(argument_grammar(schema, before="", after=""))
    if not message:
        return None
    # The engine quotes the whole grammar below its sentence.
    return str(message.partition(_ENGINE_SAYS)[2] or message).partition("\n")[0].strip()


def argument_grammar(schema: str, *, before: str, after: str) -> str:
    """Arguments between the text that their first token covers before them and the text that may follow.

    So a token that covers an end of the arguments and a part of what stands beside them is judged exactly.
    """
    literals = [json.dumps(text, ensure_ascii=False) for text in (before, after)]
    rules = f"start: {literals[0]} arguments {literals[1]}\narguments: %json {schema}\n"
    return str(LLMatcher.grammar_from_lark(_OPTIONS + rules))


class JsonGrammars:
    """Compiled grammars over the tokens of one tokenizer; the newest are kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises `ModelMismatch` where llguidance cannot read the tokenizer."""
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(tokenizer)
        except ValueError as error:
            raise ModelMismatch(
                f"llguidance cannot read the tokenizer {tokenizer.name_or_path or 'in memory'} ({error}).",
                hint="Use models with a fast tokenizer (tokenizer.json), byte-level or like SentencePiece's.",
            ) from error
        self._compiled = lru_cache(maxsize=_MOST_COMPILED)(self._compile)

    @property
    def num_words(self) -> int:
        """32-bit words of a mask."""
        return (int(self._tokenizer.vocab_size) + 31) // 32

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """What tokens spell."""
        return bytes(self._tokenizer.decode_bytes(list(ids)))

    def is_special(self, token: int) -> bool:
        """Whether a token is a mark, and no text."""
        return bool(self._tokenizer.is_special_token(token))

    def num_accepted(self, grammar: str, ids: Sequence[int]) -> int:
        """How many of the tokens, from the first on, the grammar allows."""
        return int(self._compiled(grammar).deep_copy().try_consume_tokens(list(ids)))

    def masks(self, grammar: str, ids: Sequence[int]) -> Tensor:
        """What the grammar allows in the place of each token, after those before it.

        Returns:
            (tokens, words) of int32 on the CPU: bit v % 32 of word v // 32 says whether entry v is allowed.
        """
        matcher = self._compiled(grammar).deep_copy()
        found = torch.zeros(len(ids), self.num_words, dtype=torch.int32)
        row_bytes = self.num_words * found.element_size()
        for place, token in enumerate(ids):
            matcher.unsafe_compute_mask_ptr(found.data_ptr() + place * row_bytes, row_bytes)
            assert matcher.consume_token(token), "every call was held against its grammar when it was tokenized"
        return found

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher
