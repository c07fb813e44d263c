"""Measure calls on held-out conversations."""

from __future__ import annotations

import json

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.tool_conversations import Conversation, ToolSource
from crashproof.distillation.data.tool_data import ToolData
from crashproof.distillation.evaluation.answer_scores import answer_f1
from crashproof.distillation.evaluation.call_scores import read_call, score_call
from crashproof.distillation.evaluation.evaluator import EvaluatedStudent, Place, Sums, measuring, nats_per_token
from crashproof.distillation.evaluation.generated_text import generate_share, longest_length
from crashproof.distillation.text.chat import render_question
from crashproof.distillation.text.tokenizer import encode_text
from crashproof.pytorch.device import ComputeDevice

__all__ = ["CallEvaluator"]

_SPARE_TOKENS = 16


class CallEvaluator:
    """Reports `perplexity`, `json_valid_rate`, `tool_choice_accuracy`, `argument_exact_match`, `argument_field_f1`.

    The first call of each conversation is generated, and its final answer, if it has one: `answer_f1` is of that.
    """

    def __init__(
        self, source: ToolSource, data: ToolData, tokenizer: PreTrainedTokenizerFast, *, num_generated: int
    ) -> None:
        """The student generates for `num_generated` conversations at most."""
        self._data = data
        self._tokenizer = tokenizer
        conversations = [conversation for _, conversation in source.conversations()][:num_generated]
        self._calling = [each for each in conversations if each.calls]
        self._call_prompts = [self._prompt(each, each.calls[0].message) for each in self._calling]
        call_texts = [_first_call_text(each) for each in self._calling]
        self._max_call_tokens = longest_length(call_texts, tokenizer) + _SPARE_TOKENS
        answering = [each for each in conversations if _has_answer(each)]
        self._answer_prompts = [self._prompt(each, len(each.messages) - 1) for each in answering]
        self._answers: list[str] = [each.messages[-1]["content"] for each in answering]
        self._max_answer_tokens = longest_length(self._answers, tokenizer) + _SPARE_TOKENS

    def sums(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        """See `Evaluator.sums`."""
        with measuring(student):
            return {
                **nats_per_token(student, self._data.tokens, device, place),
                **self._score_calls(student, device, place),
                "answer_f1": self._score_answers(student, device, place),
            }

    def _score_calls(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        scores = []
        for index, text in generate_share(
            student, self._call_prompts, self._tokenizer, device, place, max_new_tokens=self._max_call_tokens
        ):
            conversation = self._calling[index]
            expected = conversation.calls[0]
            call = read_call(text, conversation.offered())
            scores.append(
                score_call(call, name=expected.name, arguments=expected.arguments, schemas=_schemas(conversation))
            )
        return {
            "json_valid_rate": (sum(each.is_valid for each in scores), len(scores)),
            "tool_choice_accuracy": (sum(each.has_right_tool for each in scores), len(scores)),
            "argument_exact_match": (sum(each.is_exact for each in scores), len(scores)),
            "argument_field_f1": (
                2 * sum(each.num_right_fields for each in scores),
                sum(each.num_fields for each in scores),
            ),
        }

    def _score_answers(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> tuple[float, float]:
        f1, num_answers = 0.0, 0
        for index, text in generate_share(
            student, self._answer_prompts, self._tokenizer, device, place, max_new_tokens=self._max_answer_tokens
        ):
            f1 += answer_f1(text, self._answers[index])
            num_answers += 1
        return f1, num_answers

    def _prompt(self, conversation: Conversation, message: int) -> list[int]:
        """The tokens of the conversation up to where this message begins."""
        text = render_question(conversation.messages[:message], self._tokenizer, tools=conversation.tools)
        return encode_text(self._tokenizer, text).ids


def _has_answer(conversation: Conversation) -> bool:
    last = conversation.messages[-1]
    return last["role"] == "assistant" and not last.get("tool_calls") and bool(last["content"])


def _first_call_text(conversation: Conversation) -> str:
    call = conversation.calls[0]
    written = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"


def _schemas(conversation: Conversation) -> dict[str, dict[str, object]]:
    return {
        tool["function"]["name"]: tool["function"].get("parameters") or {"type": "object"}
        for tool in conversation.tools
    }
