"""Measure calls on held-out conversations."""

from __future__ import annotations

import json

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.tool_conversations import Conversation, ToolSource
from crashproof.distillation.data.tool_data import ToolData
from crashproof.distillation.evaluation.answer_scores import answer_f1
from crashproof.distillation.evaluation.call_scores import read_call, score_call
from crashproof.distillation.evaluation.evaluator import (
    EvaluatedStudent,
    Place,
    Sums,
    means,
    measuring,
    nats_per_token,
)
from crashproof.distillation.evaluation.generated_text import generated_texts
from crashproof.distillation.text.chat import render_question
from crashproof.pytorch.device import ComputeDevice

__all__ = ["CallEvaluator"]

_SPARE_TOKENS = 16


class CallEvaluator:
    """Reports `perplexity`, `json_valid_rate`, `tool_choice_accuracy`, `argument_exact_match`, `argument_field_f1`.

    Of each conversation the first call is asked for; where there is a final answer, `answer_f1` is of that.
    """

    def __init__(
        self, source: ToolSource, data: ToolData, tokenizer: PreTrainedTokenizerFast, *, num_generated: int
    ) -> None:
        """The student is asked about `num_generated` conversations at most."""
        self._data = data
        self._tokenizer = tokenizer
        conversations = [conversation for _, conversation in source.conversations()][:num_generated]
        self._asked = [each for each in conversations if each.calls]
        self._answered = [each for each in conversations if _has_answer(each)]
        self._call_tokens = self._longest([_first_call_text(each) for each in self._asked])
        self._answer_tokens = self._longest([each.messages[-1]["content"] for each in self._answered])

    def sums(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        """See `Evaluator.sums`."""
        with measuring(student):
            return {
                **nats_per_token(student, self._data.tokens, device, place),
                **self._calls(student, device, place),
                "answer_f1": self._answers(student, device, place),
            }

    def results(self, sums: Sums) -> dict[str, float]:
        """See `Evaluator.results`."""
        return means(sums)

    def _calls(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        scores = []
        for indices, counts in place.batches(len(self._asked)):
            asked = [self._asked[index] for index in indices]
            said = generated_texts(
                student,
                [self._question(each, each.calls[0].message) for each in asked],
                self._tokenizer,
                device,
                max_new_tokens=self._call_tokens,
                in_lockstep=place.in_lockstep,
            )
            scores += [
                score_call(
                    read_call(text, each.offered()),
                    name=each.calls[0].name,
                    arguments=each.calls[0].arguments,
                    schemas=_schemas(each),
                )
                for text, each, is_counted in zip(said, asked, counts, strict=True)
                if is_counted
            ]
        return {
            "json_valid_rate": (sum(each.is_valid for each in scores), len(scores)),
            "tool_choice_accuracy": (sum(each.has_right_tool for each in scores), len(scores)),
            "argument_exact_match": (sum(each.is_exact for each in scores), len(scores)),
            "argument_field_f1": (
                2 * sum(each.num_right_fields for each in scores),
                sum(each.num_fields for each in scores),
            ),
        }

    def _answers(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> tuple[float, float]:
        f1, num_answers = 0.0, 0
        for indices, counts in place.batches(len(self._answered)):
            answered = [self._answered[index] for index in indices]
            said = generated_texts(
                student,
                [self._question(each, len(each.messages) - 1) for each in answered],
                self._tokenizer,
                device,
                max_new_tokens=self._answer_tokens,
                in_lockstep=place.in_lockstep,
            )
            for text, each, is_counted in zip(said, answered, counts, strict=True):
                if is_counted:
                    f1 += answer_f1(text, each.messages[-1]["content"])
                    num_answers += 1
        return f1, num_answers

    def _question(self, conversation: Conversation, message: int) -> str:
        """The conversation up to where this message begins."""
        return render_question(conversation.messages[:message], self._tokenizer, tools=conversation.tools)

    def _longest(self, texts: list[str]) -> int:
        lengths = [len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        return max(lengths, default=0) + _SPARE_TOKENS


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
