"""Let a local model answer like a paid teacher."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crashproof.distillation.models.causal_lm import load_model
from crashproof.distillation.text.chat import render_question
from crashproof.distillation.text.token_bytes import TokenBytes, token_bytes
from crashproof.distillation.text.tokenizer import load_tokenizer

__all__ = ["ModelAnswers"]

_USUAL_LENGTH = 64


class ModelAnswers:
    """The `answer` of a `crashproof.testing.TeacherServer`: `TeacherServer(ModelAnswers(folder))`.

    Generates token by token, without a cache: for small models. The same request has the same answer, as sampling
    depends on the request alone.
    """

    def __init__(self, folder: Path) -> None:
        """Read a local `transformers` folder.

        Raises:
            ConfigError: it holds no causal language model, or no tokenizer.
        """
        self._model = load_model(folder)
        self._model.train(False)
        self._tokenizer = load_tokenizer(folder)
        self._bytes = token_bytes(self._tokenizer)
        self._ruled_out = torch.tensor(
            [-math.inf if self._is_special(number) else 0.0 for number in range(len(self._bytes))]
        )
        """Added to the logits: no answer contains a special token, except the one that ends it."""

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        """The model's answer to a request, with its tokens and their most likely alternatives, in OpenAI's form."""
        text = render_question(body["messages"], self._tokenizer)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        max_tokens = body.get("max_completion_tokens") or body.get("max_tokens") or _USUAL_LENGTH
        said, distributions, is_ended = self._generate(ids, max_tokens, float(body.get("temperature") or 0.0), body)
        top_k = int(body.get("top_logprobs") or 0)
        return {
            "message": {"role": "assistant", "content": self._tokenizer.decode(said)},
            "logprobs": {
                "content": [
                    self._entry(token, logprobs, top_k) for token, logprobs in zip(said, distributions, strict=True)
                ]
            },
            "finish_reason": "stop" if is_ended else "length",
        }

    @torch.no_grad()
    def _generate(
        self, ids: list[int], max_tokens: int, temperature: float, body: dict[str, Any]
    ) -> tuple[list[int], list[Tensor], bool]:
        generator = torch.Generator().manual_seed(_seed_of(body))
        said: list[int] = []
        distributions: list[Tensor] = []
        while len(said) < max_tokens:
            output = self._model(input_ids=torch.tensor([[*ids, *said]]))
            logits = output.logits[0, -1, : len(self._bytes)].float() + self._ruled_out
            token = int(_draw(logits, temperature, generator))
            if token == self._tokenizer.eos_token_id:
                return said, distributions, True
            said.append(token)
            distributions.append(functional.log_softmax(logits, dim=-1))
        return said, distributions, False

    def _is_special(self, number: int) -> bool:
        token = self._bytes[number]
        return (token is None or token.is_special) and number != self._tokenizer.eos_token_id

    def _entry(self, token: int, logprobs: Tensor, top_k: int) -> dict[str, object]:
        top = torch.topk(logprobs, min(top_k, int(logprobs.isfinite().sum())))
        return self._token(token, logprobs[token]) | {
            "top_logprobs": [
                self._token(int(each), logprob) for each, logprob in zip(top.indices, top.values, strict=True)
            ]
        }

    def _token(self, token: int, logprob: Tensor) -> dict[str, object]:
        content = (self._bytes[token] or TokenBytes(content=b"")).content
        return {"token": content.decode("utf-8", "replace"), "logprob": float(logprob), "bytes": list(content)}


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0.0:
        return logits.argmax()
    return torch.multinomial(functional.softmax(logits / temperature, dim=-1), 1, generator=generator)


def _seed_of(body: dict[str, Any]) -> int:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:7], "big")
