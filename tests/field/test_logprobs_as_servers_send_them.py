"""Log-probabilities as servers send them."""

from __future__ import annotations

import copy
import gzip
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import chat_templates
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from crashproof import RunReader
from crashproof.distillation.data.answered.prompts import load_prompts
from crashproof.distillation.data.api_data import ApiData
from crashproof.distillation.data.source import Source
from crashproof.distillation.data.text_data import load_source
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.models.causal_lm import new_model, save_model
from crashproof.distillation.recipes.kd import complete_config
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.models import ModelShape
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.teachers.answer_file import has_logprobs, read_answered_file
from crashproof.distillation.text.aligned_answer import AlignedAnswer, LogprobsMisfit, TokenAligner
from crashproof.distillation.text.tokenizer import encode_text, end_id, train_tokenizer
from crashproof.errors import DataError, ModelMismatch
from crashproof.pytorch.interrupts import Interrupts
from crashproof.teacher import AsyncTeacher, Endpoint, Teacher
from crashproof.testing import TeacherServer
from training.distill_kd import main

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 5, "What is two and two? Two and two is four. " * 5]
EMOJI = "\U0001f600"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=300, folder=tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture
def aligner(tokenizer: PreTrainedTokenizerFast) -> TokenAligner:
    return TokenAligner(tokenizer, top_k=3)


Entry = dict[str, Any]


def entry(content: bytes | str, logprob: float | None = -0.5, **more: Any) -> Entry:
    content = content.encode() if isinstance(content, str) else content
    return {
        "token": content.decode(errors="replace"),
        "logprob": logprob,
        "bytes": list(content),
        "top_logprobs": [],
        **more,
    }


def entries_of(text: str, tokenizer: PreTrainedTokenizerFast) -> list[Entry]:
    """The entries that a good server sends for a text."""
    aligner = TokenAligner(tokenizer, top_k=1)
    return [entry(aligner._tokens[number].content) for number in encode_text(tokenizer, text).ids]


def aligned(aligner: TokenAligner, sent: object, said: str) -> AlignedAnswer:
    return aligner.align(sent, said, end_id=end_id(aligner._tokenizer))


def spelled(entries: list[Entry], spelling: str) -> list[Entry]:
    """The same tokens without bytes, as a vocabulary spells them."""
    changed = []
    for each in entries:
        text = bytes(each["bytes"]).decode()
        token = text.replace(" ", "Ġ") if spelling == "byte-level" else text.replace(" ", "▁")
        changed.append(each | {"token": token, "bytes": None})
    return changed


SAID = "Two and two is four."


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda sent: sent, id="as-openai-does"),
        pytest.param(lambda sent: [*sent, entry("<|end|>")], id="stop-token-last"),
        pytest.param(lambda sent: [*sent, entry("")], id="empty-token-last"),
        pytest.param(lambda sent: [*sent, entry("", bytes=None)], id="empty-token-without-bytes"),
        pytest.param(lambda sent: [*sent, entry("<|eot_id|>")], id="stop-token-of-another-vocabulary"),
        pytest.param(lambda sent: [*sent, entry("<\uff5cend▁of▁sentence\uff5c>")], id="stop-token-of-deepseek"),
        pytest.param(lambda sent: [*sent, entry("\n")], id="white-space-that-the-template-strips"),
        pytest.param(lambda sent: [each | {"bytes": None} for each in sent], id="bytes-null"),
        pytest.param(lambda sent: [{k: v for k, v in e.items() if k != "bytes"} for e in sent], id="no-bytes"),
        pytest.param(lambda sent: spelled(sent, "byte-level"), id="byte-level-spelling"),
        pytest.param(lambda sent: spelled(sent, "sentencepiece"), id="sentencepiece-spelling"),
        pytest.param(lambda sent: [e | {"top_logprobs": None} for e in sent], id="top-logprobs-null"),
        pytest.param(lambda sent: {"content": sent, "refusal": None}, id="the-whole-object"),
        pytest.param(
            lambda sent: {
                "tokens": [each["token"] for each in sent],
                "token_logprobs": [None, *[-0.5 for _ in sent[1:]]],
                "top_logprobs": [None, *[{each["token"]: -0.5} for each in sent[1:]]],
                "text_offset": [0],
            },
            id="as-completions-do",
        ),
        pytest.param(
            lambda sent: [entry("Count."), entry("\n"), entry("</think>"), entry("\n\n"), *sent],
            id="thoughts-before-it",
        ),
        pytest.param(
            lambda sent: [entry("<think>"), entry("</th"), entry("ink>\n\n"), *sent, entry("<|end|>")],
            id="the-end-of-a-thought-in-two-tokens",
        ),
    ],
)
def test_the_answers_tokens_are_found(aligner: TokenAligner, tokenizer: PreTrainedTokenizerFast, change: Any) -> None:
    found = aligned(aligner, change(entries_of(SAID, tokenizer)), SAID)

    assert encode_text(tokenizer, SAID).ids == found.ids
    assert len(found.ids) == len(found.entries)


def test_a_first_token_with_the_space_before_it_is_that_of_the_teacher(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """As SentencePiece has it: what follows a mark begins with a space, which no answer shows."""
    sent = entries_of(" Two and two.", tokenizer)
    line_of_it = {"prompt": "Two and? ", "teacher_text": "Two and two.", "logprobs": sent}

    data = read_answered_file(source_of(written(tmp_path, line_of_it)), tokenizer, max_length=64)

    assert "Two and? Two and two.<|end|>" == tokenizer.decode(data.batch([0]).input_ids[0])
    assert len(sent) + 1 == data.counts([0])["tokens"]


def test_tokens_given_by_their_ids_are_taken_as_they_are(
    aligner: TokenAligner, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = encode_text(tokenizer, SAID).ids
    sent = [entry("", token=f"token_id:{number}", bytes=None) for number in [*ids, end_id(tokenizer)]]

    assert ids == aligned(aligner, sent, SAID).ids


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([entry(byte, bytes=[byte[0]]) for byte in map(bytes, zip(EMOJI.encode()))], id="with-bytes"),
        pytest.param([entry("�", bytes=None)] * 4, id="without-bytes"),
        pytest.param([entry("�")] * 4, id="with-the-bytes-of-what-is-shown"),
        pytest.param([entry(f"bytes:\\x{byte:02x}", bytes=None) for byte in EMOJI.encode()], id="as-escapes"),
    ],
)
def test_an_emoji_in_several_tokens_is_one_in_the_answer(
    aligner: TokenAligner, tokenizer: PreTrainedTokenizerFast, parts: list[Entry]
) -> None:
    sent = [*entries_of("Two ", tokenizer), *parts, *entries_of(" and two.", tokenizer)]

    found = aligned(aligner, sent, f"Two {EMOJI} and two.")

    assert f"Two {EMOJI} and two." == tokenizer.decode(found.ids)
    assert len(sent) == len(found.ids)


@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_an_answer_that_was_cut_in_a_character_is_known_by_its_bytes(
    aligner: TokenAligner, tokenizer: PreTrainedTokenizerFast, num_bytes: int
) -> None:
    cut = EMOJI.encode()[:num_bytes]
    sent = [*entries_of("Two ", tokenizer), *(entry(bytes([byte])) for byte in cut)]

    found = aligned(aligner, sent, "Two " + cut.decode(errors="replace"))

    assert [aligner._ids.find(bytes([byte])) for byte in cut] == found.ids[-num_bytes:]


@pytest.mark.parametrize(
    "change, reason",
    [
        pytest.param(lambda sent: None, "it has no log-probabilities", id="null"),
        pytest.param(lambda sent: [], "it has no log-probabilities", id="empty"),
        pytest.param(lambda sent: {"content": None, "refusal": sent}, "it has no log-probabilities", id="a-refusals"),
        pytest.param(lambda sent: sent[:2], "its log-probabilities end before", id="a-part-of-the-text"),
        pytest.param(lambda sent: sent[2:], "its text goes on with b'Two", id="the-end-of-the-text"),
        pytest.param(lambda sent: [*sent, *sent], "its text goes on with b''", id="twice-the-text"),
        pytest.param(lambda sent: [entry(SAID)], "has no such token", id="merged-differently"),
        pytest.param(lambda sent: [entry("�", bytes=None)], "do not tell their bytes", id="unknown-bytes"),
        pytest.param(lambda sent: [{"logprob": -1.0}], "names no token", id="no-token"),
        pytest.param(lambda sent: ["Two"], "names no token", id="a-list-of-texts"),
        pytest.param(lambda sent: [entry("T", token="token_id:99999", bytes=None)], "token 1 of", id="unknown-id"),
    ],
)
def test_what_does_not_fit_its_text_says_why(
    aligner: TokenAligner, tokenizer: PreTrainedTokenizerFast, change: Any, reason: str
) -> None:
    with pytest.raises(LogprobsMisfit, match=reason):
        aligned(aligner, change(entries_of(SAID, tokenizer)), SAID)


def alternatives(aligner: TokenAligner, top: list[Entry], logprob: float | None = -0.5) -> dict[int, float]:
    sent = [entry("T", logprob, top_logprobs=top)]
    return dict(aligned(aligner, sent, "T").entries[0])


def test_the_token_that_was_taken_counts_though_it_is_not_among_the_likeliest(aligner: TokenAligner) -> None:
    found = alternatives(aligner, [entry("a", -1.0)], logprob=-3.0)

    assert {aligner._ids.find(b"a"): -1.0, aligner._ids.find(b"T"): -3.0} == found


def test_entries_that_are_sent_twice_count_once(aligner: TokenAligner) -> None:
    assert {aligner._ids.find(b"T"): -0.5} == alternatives(aligner, [entry("T"), entry("T")])


@pytest.mark.parametrize("unknown", [-9999.0, -math.inf, math.nan, None, "low", True])
def test_a_probability_of_nothing_is_no_entry(aligner: TokenAligner, unknown: object) -> None:
    found = alternatives(aligner, [entry("a", logprob=unknown)], logprob=None)  # type: ignore[arg-type]

    assert {} == found


def test_rounding_above_1_is_1(aligner: TokenAligner) -> None:
    assert {aligner._ids.find(b"T"): 0.0} == alternatives(aligner, [entry("T", 1e-6)], logprob=1e-6)


def test_only_as_many_entries_are_kept_as_asked_for(aligner: TokenAligner) -> None:
    top = [entry(letter, -place) for place, letter in enumerate("abcde", 1)]

    assert [-0.5, -1, -2] == list(alternatives(aligner, top).values())


def test_the_end_is_learned_from_the_servers_last_entry(
    aligner: TokenAligner, tokenizer: PreTrainedTokenizerFast
) -> None:
    end = entry("<|end|>", -0.1, top_logprobs=[entry("<|end|>", -0.1), entry(".", -3.0)])

    found = aligned(aligner, [*entries_of(SAID, tokenizer), end], SAID)

    assert {end_id(tokenizer): -0.1, aligner._ids.find(b"."): -3.0} == dict(found.end_entries)


def test_an_alternative_that_ends_the_answer_is_the_students_end(aligner: TokenAligner) -> None:
    assert end_id(aligner._tokenizer) in alternatives(aligner, [entry("<|end|>", -1.0)])


@pytest.fixture
def data_from(tmp_path: Path, open_tracker: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Training data of prompts that a server answers in its way."""
    opened: list[Any] = []

    def make(answers: list[dict[str, Any]]) -> ApiData:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{place}: "}) + "\n" for place in range(len(answers))))
        answer_to = {f"{place}: ": answer for place, answer in enumerate(answers)}
        server = TeacherServer(lambda body: answer_to[body["messages"][0]["content"]])
        teacher = Teacher(
            AsyncTeacher(
                "teacher",
                store=open_tracker().responses,
                endpoint=Endpoint(base_url=server.__enter__().base_url),
                parameters={"logprobs": True, "top_logprobs": 3},
            )
        )
        opened.extend([teacher.close, lambda: server.__exit__(None, None, None)])
        data = ApiData(
            load_prompts(path),
            tokenizer,
            max_length=64,
            top_k=3,
            ahead_samples=0,
            open_teacher=lambda tracker: nullcontext(teacher),
            interrupts=Interrupts(),
        )
        data.connect(teacher, iter(range(len(answers))))
        return data

    yield make
    for close in opened:
        close()


def answer(said: str, sent: object, **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": said}, "logprobs": sent, **more}


def test_an_answer_that_does_not_fit_is_skipped_and_counted(
    data_from: Any, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"content": entries_of(SAID, tokenizer)}
    data = data_from([answer(SAID, good), answer(SAID, None), answer(SAID, {"content": good["content"][:2]})])

    batch = data.batch([0, 1, 2])
    data._fits.report()

    assert [True, False, False] == [bool((row != IGNORED).any()) for row in batch.labels]
    assert "Skipped 2 of 3 answers: their log-probabilities do not fit." in caplog.messages
    assert 2 == sum(message.startswith("Skipping the answer") for message in caplog.messages)


def test_answers_of_which_none_fits_end_the_run_in_words(data_from: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    data = data_from([answer(SAID, {"content": [entry(SAID)]})] * 3)

    with pytest.raises(ModelMismatch, match=r"None of 3 answers .*prompts.jsonl, line 1: .*no such token"):
        data.batch([0, 1, 2])


def test_no_end_is_learned_behind_an_answer_that_was_cut(data_from: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    sent = {"content": entries_of(SAID, tokenizer)}
    data = data_from([answer(SAID, sent), answer(SAID, sent, finish_reason="length")])

    batch = data.batch([0, 1])

    assert [True, False] == [end_id(tokenizer) in row.tolist() for row in batch.labels]


@pytest.fixture(scope="module")
def student(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the teacher's tokenizer."""
    torch.manual_seed(0)
    model = new_model(ModelShape(d_model=16, num_layers=1, num_heads=2), tokenizer=tokenizer, max_length=64)
    folder = tmp_path_factory.mktemp("student") / "model"
    save_model(model, tokenizer, folder, origin={"made": "here"})
    return folder


def line(said: str, sent: object, **more: Any) -> dict[str, Any]:
    return {"prompt": "Two and two? ", "teacher_text": said, "logprobs": sent, **more}


def written(folder: Path, *lines: dict[str, Any]) -> Path:
    """As `crashproof generate --logprobs` writes it."""
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def source_of(path: Path) -> Source:
    return load_source(DataConfig(path=path))


def train(folder: Path, student: Path, data: Path, *overrides: str, steps: int = 4) -> int:
    settings = [f"data.path={data}", f"student.path={student}", "loss.kd=1", f"train.steps={steps}"]
    return main("kd", ["--config", *settings, "train.batch_size=2", *overrides, "--output-dir", str(folder / "out")])


def test_a_file_of_logprobs_is_a_teacher(
    tmp_path: Path, student: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    sent = entries_of(SAID, tokenizer)
    chat = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": SAID}], "logprobs": sent}
    data = written(tmp_path, *[line(SAID, sent)] * 5, chat, line(SAID, None))

    with caplog.at_level("INFO", logger="crashproof"):
        assert 0 == train(tmp_path, student, data, "data.held_out=0.15", "progress.eval_every=2")

    [*_, last] = RunReader.open(tmp_path / "out").all_updates()
    assert {"kd", "ce"} == {*last.loss_components}
    assert last.loss_components["kd"] > 0
    assert any("Learning from the logprobs in" in message for message in caplog.messages)
    assert not any("built-in teacher" in message for message in caplog.messages)


def test_the_distributions_of_a_file_are_those_that_were_sent(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    top = [entry("T", -0.25), entry("a", -2.0)]
    sent = [entry("T", -0.25, top_logprobs=top), entry("<|end|>", -0.125, top_logprobs=[entry("<|end|>", -0.125)])]
    data = read_answered_file(source_of(written(tmp_path, line("T", sent))), tokenizer, max_length=64)

    batch = data.batch([0])
    prompt = len(encode_text(tokenizer, "Two and two? ").ids)
    first, second = batch.topk.logprobs[0, prompt - 1], batch.topk.logprobs[0, prompt]

    assert [-0.25, -2.0] == first.tolist()
    assert [-0.125, -math.inf] == second.tolist()
    assert end_id(tokenizer) == batch.topk.ids[0, prompt, 0]
    assert {"tokens": 2} == data.counts([0])


def test_lines_without_logprobs_before_the_first_with_some_do_not_end_the_run(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    sent = entries_of(SAID, tokenizer)
    source = source_of(written(tmp_path, *[line(SAID, None)] * 20, line(SAID, sent)))

    assert 1 == len(read_answered_file(source, tokenizer, max_length=64))
    assert "Skipped 20 of 21 answers: their log-probabilities do not fit." in caplog.messages
    assert 9 == len(caplog.messages)


def test_a_file_in_which_no_line_fits_is_refused_before_training(
    tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(tmp_path, *[line(SAID, [entry(SAID)])] * 3)

    assert 2 == train(tmp_path, student, data)
    assert "None of 3 answers has log-probabilities that fit" in capsys.readouterr().err


def test_a_chat_whose_template_opens_a_thought_is_aligned_with_its_answer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat_templates.QWEN_THINKING
    sent = [entry("Count."), entry("</think>"), entry("\n\n"), *entries_of(SAID, tokenizer), entry("<|im_end|>")]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": SAID}]

    data = read_answered_file(
        source_of(written(tmp_path, {"messages": messages, "logprobs": sent})), tokenizer, max_length=96
    )
    labels = data.batch([0]).labels[0]

    assert f"{SAID}<|im_end|>\n" == tokenizer.decode(labels[labels != IGNORED])


def test_a_cut_answer_and_a_too_long_one_teach_no_end(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    sent = entries_of(SAID, tokenizer)
    long = line(SAID * 9, sent * 9)
    source = source_of(written(tmp_path, line(SAID, sent, finish_reason="length"), long, line(SAID, sent)))

    data = read_answered_file(source, tokenizer, max_length=40, on_too_long="truncate")

    has_end = [end_id(tokenizer) in data.batch([place]).labels.tolist()[0] for place in range(3)]
    assert [False, False, True] == has_end
    counted = "1 of 3 lines have more than 40 tokens (data.max_length): 1 are cut"
    assert any(counted in message for message in caplog.messages)


@pytest.mark.parametrize(
    "overrides, said",
    [
        pytest.param(["loss.temperature=2"], "are not softened", id="temperature"),
        pytest.param(["loss.intermediate=0.1"], "has no hidden states", id="hidden-states"),
    ],
)
def test_losses_that_need_more_than_logprobs_are_refused_before_training(
    tmp_path: Path,
    student: Path,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    said: str,
) -> None:
    data = written(tmp_path, line(SAID, entries_of(SAID, tokenizer)))

    assert 2 == train(tmp_path, student, data, *overrides)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_named_is_used_and_the_file_is_said_to_be_unused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, line(SAID, entries_of(SAID, tokenizer)))
    config = load_config(KdConfig, [], [f"data.path={path}", "teacher.kind=builtin"])

    with caplog.at_level("INFO", logger="crashproof"):
        completed = complete_config(config)

    assert "builtin" == completed.teacher.kind
    assert any("are not used: teacher.kind is builtin" in message for message in caplog.messages)


@pytest.mark.parametrize("overrides", [["loss.kd=0"], ["data.path=missing.jsonl"]])
def test_where_no_logprobs_are_needed_or_found_nothing_changes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, overrides: list[str]
) -> None:
    path = written(tmp_path, line(SAID, entries_of(SAID, tokenizer)))
    config = load_config(KdConfig, [], [f"data.path={path}", *overrides])

    assert config is complete_config(config)


def test_logprobs_are_found_in_any_container_and_a_line_that_is_too_long_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    sent = entries_of(SAID, tokenizer)
    plain = written(tmp_path, line(SAID, sent), line(SAID * 9, sent * 9))
    packed = tmp_path / "more.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    config = DataConfig(path=[packed, plain])

    assert has_logprobs(config)
    with pytest.raises(DataError, match=r"2 of 4 lines have more tokens than data\.max_length, which is 40"):
        read_answered_file(load_source(config), tokenizer, max_length=40)
    assert 2 == len(read_answered_file(load_source(config), tokenizer, max_length=40, on_too_long="skip"))


def test_the_last_answer_is_not_learned_where_it_is_context(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    sent = entries_of(SAID, tokenizer)
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": SAID}]
    context = {"messages": [*turns, *turns[:1], turns[1] | {"weight": 0}], "logprobs": sent}

    assert 1 == len(
        read_answered_file(source_of(written(tmp_path, context, line(SAID, sent))), tokenizer, max_length=200)
    )
    assert any("its last answer is context" in message for message in caplog.messages)
