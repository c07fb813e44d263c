"""Measure answers on held-out prompts."""

from __future__ import annotations

from itertools import islice

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.answer_data import AnswerData, AnswerLine, AnswerSource
from crashproof.distillation.evaluation.answer_scores import answer_f1, is_exact_answer
from crashproof.distillation.evaluation.evaluator import EvaluatedStudent, Place, Sums, measuring, nats_per_token
from crashproof.distillation.evaluation.generated_text import generate_share, longest_length
from crashproof.distillation.text.chat import render_question
from crashproof.distillation.text.tokenizer import encode_document, encode_text
from crashproof.pytorch.device import ComputeDevice

__all__ = ["AnswerEvaluator"]

_SPARE_TOKENS = 8


class AnswerEvaluator:
    """Reports `perplexity`, `answer_f1`, `answer_exact_match` and, where there are pairs, `preference_accuracy`.

    Answers with a quality below 1 are no reference: they count neither in the perplexity nor as expected answers.
    """

    def __init__(
        self, source: AnswerSource, data: AnswerData, tokenizer: PreTrainedTokenizerFast, *, num_generated: int
    ) -> None:
        """The student answers `num_generated` prompts at most."""
        self._data = data.with_rejected()
        self._reference = data.reference_tokens()
        self._pairs = data.pairs()
        self._tokenizer = tokenizer
        right = [sample for sample in source.samples if sample.get("quality") in (None, 1)]
        # An answer that only calls tools has no words to compare.
        lines = list(islice((line for line in map(source.line, right) if line.answer), num_generated))
        self._prompts = [_question(line, tokenizer) for line in lines]
        self._answers = [line.answer for line in lines]
        self._max_new_tokens = longest_length(self._answers, tokenizer) + _SPARE_TOKENS

    def sums(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        """See `Evaluator.sums`."""
        with measuring(student):
            return {
                **nats_per_token(student, self._reference, device, place),
                **self._score_answers(student, device, place),
                "preference_accuracy": self._compare_pairs(student, device, place),
            }

    def _score_answers(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        f1, num_exact, num_answers = 0.0, 0, 0
        for index, text in generate_share(
            student, self._prompts, self._tokenizer, device, place, max_new_tokens=self._max_new_tokens
        ):
            f1 += answer_f1(text, self._answers[index])
            num_exact += is_exact_answer(text, self._answers[index])
            num_answers += 1
        return {"answer_f1": (f1, num_answers), "answer_exact_match": (num_exact, num_answers)}

    def _compare_pairs(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> tuple[float, float]:
        """How often the better answer is more likely per token, and the number of pairs."""
        num_right, num_pairs = 0, 0
        for places, counts in place.batches(len(self._pairs)):
            batch = self._data.batch([self._pairs[each] for each in places])
            values = student.cross_entropies(batch.to(device.device)).double().cpu()
            mean = batch.mean_logprobs(values)
            is_right = (mean[batch.chosen] > mean[batch.rejected]).tolist()
            num_right += sum(right for right, is_counted in zip(is_right, counts, strict=True) if is_counted)
            num_pairs += sum(counts)
        return num_right, num_pairs


def _question(line: AnswerLine, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens that a student continues with its answer."""
    if line.prompt is not None:
        return encode_document(tokenizer, line.prompt).ids
    return encode_text(tokenizer, render_question(line.messages, tokenizer, tools=line.tools)).ids
