"""Training data that a paid teacher answers while the loop runs."""

from __future__ import annotations

import json
import math
import signal
from contextlib import nullcontext

import pytest
import torch
from loss_sums import topk_kl_sum

from crashproof.distillation.data.answered.prompts import load_prompts
from crashproof.distillation.data.api_data import ApiData
from crashproof.distillation.losses.divergences import IGNORED, next_token_targets
from crashproof.distillation.models.causal_lm import load_model, new_model, save_model
from crashproof.distillation.models.model_answers import ModelAnswers
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.models import ModelShape
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.text.chat import BUILTIN_TEMPLATE
from crashproof.distillation.text.corpus import builtin_documents
from crashproof.distillation.text.tokenizer import load_tokenizer, train_tokenizer
from crashproof.errors import ConfigError, DataError, ModelMismatch, TeacherRefused
from crashproof.pytorch.interrupts import Interrupts, StopRequested
from crashproof.pytorch.ranks import SingleRank
from crashproof.teacher import AsyncTeacher, Endpoint, RetryPolicy, Teacher
from crashproof.testing import Fault, Faults, TeacherServer

TOP_K = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher with a chat template of its own."""
    folder = tmp_path_factory.mktemp("api")
    tokenizer = train_tokenizer(builtin_documents()[:50], vocab_size=300, folder=folder / "tokenizer")
    tokenizer.chat_template = BUILTIN_TEMPLATE
    torch.manual_seed(0)
    model = new_model(ModelShape(d_model=16, num_layers=1, num_heads=2), tokenizer=tokenizer, max_length=256)
    with torch.no_grad():
        # Sharper than fresh weights, so that the kept entries carry most of the mass.
        model.lm_head.weight.mul_(60)
    save_model(model, tokenizer, folder / "model", origin={"made": "here"})
    return folder / "model"


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture
def prompts(tmp_path):
    def written(*lines: dict) -> object:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return load_prompts(path)

    return written


@pytest.fixture
def asked(open_tracker):
    """A teacher behind a server, with a run's store."""
    opened = []

    def open_it(server: TeacherServer, *, keeps_truncated: bool = True, **parameters: object) -> Teacher:
        tracker = open_tracker()
        teacher = Teacher(
            AsyncTeacher(
                "teacher",
                store=tracker.responses,
                endpoint=Endpoint(base_url=server.base_url),
                parameters={"max_tokens": 5, "temperature": 1.0, **parameters},
                retry_policy=RetryPolicy(attempts=2, first_wait_seconds=0.01),
                keeps_truncated=keeps_truncated,
            )
        )
        opened.append(teacher)
        return teacher

    yield open_it
    for teacher in opened:
        teacher.close()


def data_of(source, tokenizer, *, top_k=None, ahead=0, max_length=96, interrupts=None, open_teacher=None) -> ApiData:
    return ApiData(
        source,
        tokenizer,
        max_length=max_length,
        top_k=top_k,
        ahead_samples=ahead,
        # Most tests connect a teacher themselves.
        open_teacher=open_teacher or (lambda tracker: nullcontext(None)),
        interrupts=interrupts or Interrupts(),
    )


CHAT = {"messages": [{"role": "user", "content": "What is a list?"}]}


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_its_probabilities(folder, tokenizer, prompts, asked):
    with TeacherServer(ModelAnswers(folder)) as server:
        data = data_of(prompts(CHAT), tokenizer, top_k=TOP_K)
        data.connect(asked(server, logprobs=True, top_logprobs=TOP_K), iter([0]))
        batch = data.batch([0])
    model = load_model(folder)

    def kl_of(scale: float) -> float:
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits * scale
        targets = next_token_targets(batch.labels)
        settings = {"vocab_size": len(tokenizer), "temperature": 1.0}
        return float(topk_kl_sum(logits, batch.topk.ids, batch.topk.logprobs, targets, **settings))

    assert 5 == int((batch.topk.ids[..., 0] >= 0).sum())
    assert kl_of(1.0) < 1e-4 < 1e-2 < kl_of(0.5)


def test_the_answer_and_its_end_mark_are_learned_and_the_question_is_not(folder, tokenizer, prompts, asked):
    with TeacherServer(lambda body: "Forty-two.") as server:
        data = data_of(prompts(CHAT, {"prompt": "Six times seven: "}), tokenizer)
        data.connect(asked(server), iter([0, 1]))
        batch = data.batch([0, 1])
    learned = [tokenizer.decode(row[row != IGNORED]) for row in batch.labels]

    assert ["Forty-two.<|end|>", "Forty-two.<|end|>"] == [text.strip() for text in learned]
    assert batch.topk is None


def test_the_same_answers_make_the_same_batch_in_whatever_order_they_came(folder, tokenizer, prompts, asked):
    source = prompts(*({"prompt": f"Number {number}: "} for number in range(6)))
    with TeacherServer(ModelAnswers(folder)) as server:
        batches = []
        for ahead in (0, 6):
            data = data_of(source, tokenizer, top_k=3, ahead=ahead)
            data.connect(asked(server, logprobs=True, top_logprobs=3), iter([4, 1, 5, 0]))
            batches.append([data.batch([4, 1]), data.batch([5, 0])])

    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.topk.ids, other.topk.ids)
        assert torch.equal(one.topk.logprobs, other.topk.logprobs)


def test_training_that_goes_back_takes_another_order_and_pays_nothing_twice(folder, tokenizer, prompts, asked):
    source = prompts(*({"prompt": f"Number {number}: "} for number in range(6)))
    with TeacherServer(ModelAnswers(folder)) as server:
        data, teacher = data_of(source, tokenizer, ahead=4), asked(server)
        data.connect(teacher, iter([0, 1, 2, 3, 4, 5]))
        first = data.batch([0, 1])
        data.batch([2, 3])
        data.connect(teacher, iter([0, 1, 4, 5]))
        again = data.batch([0, 1])
        data.batch([4, 5])
        num_asked = len(server.requests_seen)

    assert torch.equal(first.input_ids, again.input_ids)
    assert 6 == num_asked


class MainOfTwo(SingleRank):
    """The main one of two ranks; what the other one gets is lost."""

    num_ranks = 2


def test_of_two_ranks_each_gets_its_part_of_what_one_would_learn(folder, tokenizer, prompts, asked):
    source = prompts(*({"prompt": f"Number {number}: "} for number in range(4)))
    with TeacherServer(ModelAnswers(folder)) as server:
        teacher = asked(server, logprobs=True, top_logprobs=3)
        alone = data_of(source, tokenizer, top_k=3)
        alone.connect(teacher, iter([3, 1, 0, 2]))
        whole, num_counted = alone.batch([3, 1, 0, 2]), alone.counts([3, 1, 0, 2])
        shared = data_of(source, tokenizer, top_k=3, ahead=4, open_teacher=lambda tracker: nullcontext(teacher))
        with shared.attach(object(), iter([3, 1, 0, 2]), MainOfTwo()):
            part = shared.batch([3, 1])
            num_counted_by_both = shared.counts([3, 1, 0, 2])

    length = part.input_ids.shape[1]
    assert num_counted == num_counted_by_both
    assert 2 * len(part.input_ids) == len(whole.input_ids)
    for one, other in ((part.input_ids, whole.input_ids), (part.topk.logprobs, whole.topk.logprobs)):
        assert torch.equal(one, other[:2, :length])
    assert 4 == server.counts.answers_computed


def test_the_prompts_of_the_other_rank_are_asked_too_even_without_asking_ahead(folder, tokenizer, prompts, asked):
    source = prompts(*({"prompt": f"Number {number}: "} for number in range(4)))
    with TeacherServer() as server:
        teacher = asked(server)
        data = data_of(source, tokenizer, open_teacher=lambda tracker: nullcontext(teacher))
        with data.attach(object(), iter([3, 1, 0, 2]), MainOfTwo()):
            data.batch([3])
            data.batch([0])

        assert 4 == server.counts.answers_computed


def test_answers_are_requested_ahead_and_never_beyond_the_last_step(folder, tokenizer, prompts, asked):
    source = prompts(*({"prompt": f"Number {number}: "} for number in range(9)))
    with TeacherServer() as server:
        data = data_of(source, tokenizer, ahead=4)
        teacher = asked(server)
        data.connect(teacher, iter(range(7)))
        for indices in ([0, 1], [2, 3], [4, 5], [6]):
            data.batch(indices)
        teacher.close(waits=True)

        assert 7 == server.counts.answers_computed


def test_a_loop_that_goes_on_only_after_its_answers_came_never_waits(folder, tokenizer, prompts, asked):
    source = prompts(*({"prompt": f"Number {number}: "} for number in range(4)))
    with TeacherServer() as server:
        data = data_of(source, tokenizer, ahead=4)
        data.connect(asked(server), iter(range(4)))
        for _, answer in data._asked:
            answer.result(timeout=30)
        data.batch([0, 1])
        data.batch([2, 3])

    assert 0 == data.num_waits


def test_an_unusable_answer_is_skipped_and_reported_once(folder, tokenizer, prompts, asked, caplog):
    with TeacherServer(lambda body: "") as server:
        data = data_of(prompts({"prompt": "Say nothing: "}), tokenizer)
        data.connect(asked(server), iter([0, 0]))
        labels = [data.batch([0]).labels, data.batch([0]).labels]

    assert all(bool((each == IGNORED).all()) for each in labels)
    assert 1 == sum("Skipping" in message for message in caplog.messages)


def test_a_token_that_the_student_does_not_have_is_named(folder, tokenizer, prompts, asked):
    strange = {"token": "zebra", "logprob": -0.1, "bytes": list(b"zebra"), "top_logprobs": []}
    answer = {"message": {"role": "assistant", "content": "zebra"}, "logprobs": {"content": [strange]}}
    with TeacherServer(lambda body: answer) as server:
        data = data_of(prompts({"prompt": "An animal: "}), tokenizer, top_k=3)
        data.connect(asked(server, logprobs=True, top_logprobs=3), iter([0]))
        with pytest.raises(ModelMismatch) as raised:
            data.batch([0])

    assert "prompts.jsonl, line 1: it has as token 1 the bytes b'zebra'" in str(raised.value)


def test_two_of_the_teachers_tokens_that_are_one_of_the_students_are_counted_together(
    folder, tokenizer, prompts, asked
):
    def entry(logprob: float) -> dict:
        return {"token": "a", "logprob": logprob, "bytes": [97]}

    told = entry(-1.0) | {"top_logprobs": [entry(math.log(0.5)), entry(math.log(0.25))]}
    answer = {"message": {"role": "assistant", "content": "a"}, "logprobs": {"content": [told]}}
    with TeacherServer(lambda body: answer) as server:
        data = data_of(prompts({"prompt": "A letter: "}), tokenizer, top_k=3)
        data.connect(asked(server, logprobs=True, top_logprobs=3), iter([0]))
        batch = data.batch([0])
    kept = batch.topk.logprobs[batch.topk.ids >= 0]

    assert [pytest.approx(math.log(0.75))] == kept.tolist()


def test_an_answer_without_probabilities_is_refused_where_they_are_needed(folder, tokenizer, prompts, asked):
    with TeacherServer() as server:
        data = data_of(prompts({"prompt": "A letter: "}), tokenizer, top_k=3)
        data.connect(asked(server), iter([0]))
        with pytest.raises(ModelMismatch, match="it has no log-probabilities"):
            data.batch([0])


def test_a_prompt_without_room_for_an_answer_is_refused_before_anything_is_asked(tokenizer, prompts):
    source = prompts({"prompt": "short"}, {"prompt": "word " * 200})

    with pytest.raises(DataError, match=r"prompts.jsonl, line 2: it has .* leaves no room for an answer"):
        data_of(source, tokenizer)


def test_a_refusal_of_the_teacher_reaches_the_loop(folder, tokenizer, prompts, asked):
    with TeacherServer(models=("another",)) as server:
        data = data_of(prompts({"prompt": "Hello: "}), tokenizer)
        data.connect(asked(server), iter([0]))
        with pytest.raises(TeacherRefused):
            data.batch([0])


def test_a_stop_request_ends_the_wait_for_a_batch(folder, tokenizer, prompts, asked):
    interrupts = Interrupts()
    interrupts.received = signal.SIGTERM
    with TeacherServer(latency_seconds=3.0) as server:
        data = data_of(prompts({"prompt": "Slow: "}), tokenizer, interrupts=interrupts)
        data.connect(asked(server), iter([0]))
        with pytest.raises(StopRequested):
            data.batch([0])


def test_a_request_to_a_faulty_teacher_is_retried(folder, tokenizer, prompts, asked, open_tracker):
    with TeacherServer(faults=Faults(script=[Fault.SERVER_ERROR])) as server:
        data = data_of(prompts({"prompt": "Hello: "}), tokenizer)
        data.connect(asked(server), iter([0]))
        batch = data.batch([0])

    assert batch.num_counted() > 0


API = ["data.path=p.jsonl", "teacher.kind=api", "teacher.model=m", "loss.intermediate=0"]


@pytest.mark.parametrize(
    "overrides, said",
    [
        pytest.param([*API, "loss.kd=1"], "an answer is text alone", id="kd-without-logprobs"),
        pytest.param([*API, "teacher.logprobs=5"], "probabilities are not softened", id="temperature"),
        pytest.param([*API[1:], "loss.kd=0"], "set data.path to a file", id="no-prompts"),
        pytest.param(["data.path=p.jsonl", "teacher.kind=api"], "needs the name of the model", id="no-model"),
        pytest.param(["teacher.budget=5"], "budget belongs to kind: api", id="of-another-kind"),
        pytest.param([*API, "loss.kd=0", "loss.intermediate=1"], "has no hidden states", id="hidden-states"),
    ],
)
def test_an_inconsistent_config_is_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(KdConfig, [], overrides)


def test_a_ready_config_is_taken():
    config = load_config(KdConfig, [], [*API, "teacher.logprobs=5", "loss.temperature=1", "teacher.budget=2.50"])

    assert {"logprobs": True, "top_logprobs": 5} == config.teacher.request_parameters()
