"""Measure answers on held-out prompts."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.answer_data import AnswerData, AnswerLine, AnswerSource
from crashproof.distillation.evaluation.answer_scores import answer_f1, is_exact_answer
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

__all__ = ["AnswerEvaluator"]

_SPARE_TOKENS = 8


class AnswerEvaluator:
    """Reports `perplexity`, `answer_f1`, `answer_exact_match` and, where there are pairs, `preference_accuracy`.

    Answers with a quality below 1 are no reference: neither the perplexity is of them, nor are they held against what
    the student says.
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
        lines = [source.line(sample) for sample in right[:num_generated]]
        self._prompts = [_question(line, tokenizer) for line in lines]
        self._answers = [line.answer for line in lines]
        lengths = [len(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in self._answers]
        self._max_new_tokens = max(lengths, default=0) + _SPARE_TOKENS

    def sums(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        """See `Evaluator.sums`."""
        with measuring(student):
            return {
                **nats_per_token(student, self._reference, device, place),
                **self._answered(student, device, place),
                "preference_accuracy": self._preferred(student, device, place),
            }

    def results(self, sums: Sums) -> dict[str, float]:
        """See `Evaluator.results`."""
        return means(sums)

    def _answered(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> Sums:
        f1, num_exact, num_answers = 0.0, 0, 0
        for indices, counts in place.batches(len(self._prompts)):
            said = generated_texts(
                student,
                [self._prompts[index] for index in indices],
                self._tokenizer,
                device,
                max_new_tokens=self._max_new_tokens,
                in_lockstep=place.in_lockstep,
            )
            for text, index, is_counted in zip(said, indices, counts, strict=True):
                if is_counted:
                    f1 += answer_f1(text, self._answers[index])
                    num_exact += is_exact_answer(text, self._answers[index])
                    num_answers += 1
        return {"answer_f1": (f1, num_answers), "answer_exact_match": (num_exact, num_answers)}

    def _preferred(self, student: EvaluatedStudent, device: ComputeDevice, place: Place) -> tuple[float, float]:
        """How often the better answer is the likelier one, per token."""
        num_right, num_pairs = 0, 0
        for places, counts in place.batches(len(self._pairs)):
            batch = self._data.batch([self._pairs[each] for each in places])
            values = student.cross_entropies(batch.to(device.device)).double().cpu()
            mean = batch.mean_logprobs(values)
            is_right = (mean[batch.chosen] > mean[batch.rejected]).tolist()
            num_right += sum(right for right, is_counted in zip(is_right, counts, strict=True) if is_counted)
            num_pairs += sum(counts)
        return num_right, num_pairs


def _question(line: AnswerLine, tokenizer: PreTrainedTokenizerFast) -> str:
    """What a student reads before it answers."""
    if line.prompt is not None:
        return line.prompt
    return render_question(line.messages, tokenizer, tools=line.tools)
