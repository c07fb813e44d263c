"""Data that are longer than the models, the config or a paid answer allow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from crashproof import RunReader
from crashproof.distillation.data.answer_data import answer_data, read_answers
from crashproof.distillation.data.answered.prompts import load_prompts
from crashproof.distillation.data.text_data import TokenizedData, load_source, tokenized
from crashproof.distillation.data.tool_conversations import read_source
from crashproof.distillation.data.tool_data import tool_data
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.models.text_model import most_positions
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.load import load_config
from crashproof.distillation.settings.recipes.answer_generation import AnswerDataConfig
from crashproof.distillation.settings.recipes.kd import KdConfig
from crashproof.distillation.settings.recipes.tools import ToolDataConfig
from crashproof.distillation.text.tokenizer import end_id
from crashproof.distillation.training.capture import CaptureSettings, capture_logits
from crashproof.errors import DataError
from crashproof.pytorch.interrupts import Interrupts
from crashproof.testing import TeacherServer
from tests.model_folders import VOCAB_SIZE, WITHOUT_A_TEACHER, save, tiny_tokenizer
from tests.tool_lines import CLOCK, WEATHER
from training.distill_answer_generation import main as train_answers
from training.distill_kd import main as train_kd
from training.distill_process import main as train_process
from training.distill_tool_select import main as train_tools

FOX = "The quick brown fox jumps over the lazy dog. "
SMALL = ("train.steps=2", "train.batch_size=2", "train.device=cpu", "tokenizer.vocab_size=262")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(tmp_path_factory.mktemp("lengths") / "tokenizer")


@pytest.fixture(scope="module")
def of_128(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned 128 positions, and has no more."""
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=16, n_layer=1, n_head=2, n_positions=128)
    return save(GPT2LMHeadModel(shape), tokenizer, tmp_path_factory.mktemp("lengths") / "of_128")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_lines(*lines: dict[str, Any]) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write_lines


@pytest.fixture
def kd(tmp_path: Path) -> Callable[..., int]:
    def start(data: Path, *overrides: object) -> int:
        words = [f"data.path={data}", *SMALL, *WITHOUT_A_TEACHER, *map(str, overrides)]
        return train_kd("kd", [*words, "--output-dir", str(tmp_path / "out")])

    return start


@pytest.fixture
def read(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., TokenizedData]:
    def read_lines(data: Path, **settings: Any) -> TokenizedData:
        config = DataConfig(path=data, **settings)
        return tokenized(load_source(config), config, tokenizer, tmp_path / "cache")

    return read_lines


def long(num: int = 20) -> dict[str, str]:
    return {"prompt": "Say:", "teacher_text": " fox" * num}


def ends(data: TokenizedData, tokenizer: PreTrainedTokenizerFast) -> list[bool]:
    """Of each sample, whether it learns the end of text."""
    batches = [data.batch([index]).labels[0] for index in range(len(data))]
    return [bool((labels == end_id(tokenizer)).any()) for labels in batches]


def test_a_model_of_128_positions_is_not_given_more(
    of_128: Path, write: Callable[..., Path], kd: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(*[long()] * 3, {"prompt": "Say:", "teacher_text": FOX * 30})

    assert 2 == kd(data, f"student.path={of_128}")
    assert "line 4: it has " in (said := capsys.readouterr().err)
    assert "data.max_length is 128" in said
    assert 0 == kd(data, f"student.path={of_128}", "data.on_too_long=skip")


def test_text_is_split_at_what_the_student_accepts(
    of_128: Path, write: Callable[..., Path], kd: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    assert 0 == kd(write({"text": FOX * 60}, {"text": FOX}), f"student.path={of_128}")

    assert "data.max_length is 128 tokens: what the student accepts." in caplog.messages
    assert any("1 of 2 texts have more than 128 tokens and are split" in each for each in caplog.messages)


def test_a_length_beyond_the_positions_is_refused_before_anything_is_written(
    of_128: Path,
    write: Callable[..., Path],
    kd: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert 2 == kd(write({"text": FOX}), f"student.path={of_128}", "data.max_length=129")

    assert "data.max_length is 129, and the student takes 128 tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_smaller_of_two_models_decides(
    of_128: Path,
    tokenizer: PreTrainedTokenizerFast,
    write: Callable[..., Path],
    kd: Callable[..., int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    shape = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=16, n_layer=1, n_head=2, n_positions=48)
    teacher = save(GPT2LMHeadModel(shape), tokenizer, tmp_path / "teacher")
    models = (f"student.path={of_128}", "teacher.kind=local", f"teacher.path={teacher}", "loss.kd=1")

    assert 0 == kd(write({"text": FOX * 20}), *models)

    assert "data.max_length is 48 tokens: what the teacher accepts." in caplog.messages


def test_capture_of_a_teacher_with_fewer_positions_than_the_data_is_refused_first(
    of_128: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    data = write(long(), {"prompt": "Say:", "teacher_text": FOX * 30}, {"prompt": "Say:", "teacher_text": FOX * 40})
    words = [f"data.path={data}", "teacher.kind=local", f"teacher.path={of_128}", "train.device=cpu"]
    settings = CaptureSettings(top_k=4, temperature=1.0, shard_tokens=1000, batch_size=2)

    with pytest.raises(DataError, match=r"2 of 3 lines have more tokens than data\.max_length, which is 128"):
        capture_logits(load_config(KdConfig, [], words), settings, tmp_path / "logits", interrupts=Interrupts())
    skipping = load_config(KdConfig, [], [*words, "data.on_too_long=skip"])
    manifest = capture_logits(skipping, settings, tmp_path / "logits", interrupts=Interrupts())

    assert 1 == sum(shard.num_samples for shard in manifest.shards)


def test_captured_logits_bring_their_length_along(
    of_128: Path,
    tokenizer: PreTrainedTokenizerFast,
    write: Callable[..., Path],
    kd: Callable[..., int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    shape = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=16, n_layer=1, n_head=2, n_positions=48)
    teacher = save(GPT2LMHeadModel(shape), tokenizer, tmp_path / "teacher")
    data, logits = write({"text": FOX * 9}, long(2)), tmp_path / "logits"
    words = [f"data.path={data}", "teacher.kind=local", f"teacher.path={teacher}", "train.device=cpu"]
    settings = CaptureSettings(top_k=4, temperature=2.0, shard_tokens=1000, batch_size=2)
    capture_logits(load_config(KdConfig, [], words), settings, logits, interrupts=Interrupts())

    from_logits = ("teacher.kind=logits", f"teacher.path={logits}", "loss.kd=1", "loss.temperature=2")
    assert 0 == kd(data, f"student.path={of_128}", *from_logits)

    assert "data.max_length is 48 tokens: that of the captured logits." in caplog.messages


def test_all_lines_that_are_too_long_are_counted_at_once(
    write: Callable[..., Path], read: Callable[..., TokenizedData]
) -> None:
    data = write(*[long(2)] * 3, *[long(40)] * 6, long(90))

    with pytest.raises(
        DataError, match=r"7 of 10 lines .* is 32: lines 4, 5, 6, 7, 8 and 2 more; the longest, line 10, has \d+ tok"
    ) as refused:
        read(data, max_length=32)

    assert "on_too_long to skip or truncate" in str(refused.value)


def test_a_line_at_exactly_the_limit_is_whole(
    write: Callable[..., Path], read: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    data = write(long(9))
    length = len(read(data, max_length=500).input_ids)

    assert [True] == ends(read(data, max_length=length), tokenizer)
    with pytest.raises(DataError, match=f"line 1: it has {length} tokens, .* data.max_length is {length - 1}"):
        read(data, max_length=length - 1)


def test_a_cut_answer_teaches_no_end(
    write: Callable[..., Path], read: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    data = write(long(9), long(60), {"prompt": "Say: " * 30, "teacher_text": "fox"})

    tokens = read(data, max_length=40, on_too_long="truncate")

    # Of the third line nothing would be left to learn.
    assert [True, False] == ends(tokens, tokenizer)


def test_an_answer_that_only_lacks_room_for_its_end_is_learned_without_it(
    write: Callable[..., Path], read: Callable[..., TokenizedData], tokenizer: PreTrainedTokenizerFast
) -> None:
    data = write(long(9))
    length = len(read(data, max_length=500).input_ids)

    assert [False] == ends(read(data, max_length=length - 1, on_too_long="truncate"), tokenizer)


@pytest.mark.parametrize("on_too_long", ["skip", "truncate"])
def test_lines_of_which_none_can_be_used_are_an_error(
    write: Callable[..., Path], read: Callable[..., TokenizedData], on_too_long: str
) -> None:
    data = write(*[{"prompt": FOX * 9, "teacher_text": "fox"}] * 3)

    with pytest.raises(DataError, match=r"all of its 3 lines have more tokens than data\.max_length, which is 16"):
        read(data, max_length=16, on_too_long=on_too_long)


def test_what_is_left_out_is_said_at_every_start(
    write: Callable[..., Path], kd: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    data = write(*[long(2)] * 4, long(200))
    words = "1 of 5 lines have more than 128 tokens (data.max_length): 1 are left out. The longest, line 5, has"
    for _ in range(2):
        caplog.clear()
        assert 0 == kd(data, "data.on_too_long=skip")
        assert 1 == sum(words in each for each in caplog.messages)


def test_a_run_that_skips_lines_goes_on_as_the_same_run(
    write: Callable[..., Path], kd: Callable[..., int], tmp_path: Path
) -> None:
    data = write(*[long(2)] * 4, long(200))

    assert 0 == kd(data, "data.on_too_long=skip")
    assert 0 == kd(data, "data.on_too_long=skip", "train.steps=4")

    assert 2 == len(RunReader.open(tmp_path / "out").session().attempts)


def test_held_out_lines_are_measured_before_a_teacher_is_trained(
    write: Callable[..., Path], tmp_path: Path, kd: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(long(200)) + "\n")

    assert 2 == kd(write(long(2)), f"data.eval_path={held_out}", "loss.kd=1")

    assert f"{held_out}, line 1: it has" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "cache").glob("teacher-*"))


def test_a_judged_pair_is_cut_where_its_answers_still_differ(
    write: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    apart = {"prompt": "Say: ", "answer": "two " * 40, "rejected": "four " * 40}
    alike = {"prompt": "Say: ", "answer": FOX * 3 + "two", "rejected": FOX * 3 + "four"}
    plain = {"prompt": "Say: ", "answer": "two"}
    config = AnswerDataConfig(max_length=32, on_too_long="truncate")

    data = answer_data(
        read_answers(write(apart, alike, plain)), config, tokenizer, tmp_path / "cache", has_rejected=True
    )

    assert 2 == len(data)
    assert [0] == data.pairs()
    assert [2] == data.whole
    batch = data.batch([0, 1])
    assert [False, True, False] == [bool((labels == end_id(tokenizer)).any()) for labels in batch.labels]


def call_line(answer: str, *, city: str = "Rome") -> dict[str, Any]:
    function = {"name": "search", "arguments": json.dumps({"city": city})}
    calls = [{"id": "c", "type": "function", "function": function}]
    return {
        "tools": [WEATHER, CLOCK],
        "messages": [
            {"role": "user", "content": f"How is it in {city}?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c", "content": "21 degrees"},
            {"role": "assistant", "content": answer},
        ],
    }


def test_an_answer_behind_a_call_is_cut_but_never_a_call(
    write: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lines = [call_line("21 degrees."), call_line("It has 21 degrees. " * 60), call_line("Yes.", city="Rome " * 300)]
    source = read_source(write(*lines), has_one_call=False)
    config = ToolDataConfig(max_length=700, on_too_long="truncate")

    data = tool_data(source, config, tokenizer, tmp_path / "cache", ends_with_call=False, has_masks=True)

    assert 2 == len(data)
    assert [0] == data.whole
    batch = data.batch([0, 1])
    assert 700 == batch.input_ids.shape[1]
    assert batch.labels[1, -1] != IGNORED
    # Both calls are whole: their arguments have the same masks.
    assert 0 == len(batch.masks) % 2


RECIPES: dict[str, tuple[Callable[..., int], dict[str, Any], dict[str, Any]]] = {
    "answer_generation": (
        train_answers,
        {"prompt": "Say:", "answer": " fox"},
        {"prompt": "Say:", "answer": FOX * 99},
    ),
    "tool_select": (
        train_tools,
        {"tools": [CLOCK], "messages": call_line("")["messages"][:1]},
        {"tools": [CLOCK], "messages": call_line("", city="Rome " * 999)["messages"][:1]},
    ),
    "process": (train_process, call_line("Fine."), call_line("Fine. " * 999)),
}
for _line in RECIPES["tool_select"][1:]:
    _function = {"name": "clock", "arguments": "{}"}
    _line["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": _function}]}
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_counts_first_and_leaves_out_where_it_is_told(
    name: str, write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, short, too_long = RECIPES[name]
    data = write(short, short, short, too_long, too_long, short)
    words = [f"data.path={data}", *SMALL, "train.steps=1", "data.held_out=0.34", "data.max_length=512"]
    words += ["loss.kd=0"] if name == "process" else []
    words += ["model.d_model=8", "model.num_layers=1", "model.num_heads=2", "progress.eval_samples=1"]
    out = ["--output-dir", str(tmp_path / "out"), "--eval-every", "1"]

    assert 2 == train(name, [*words, *out])
    assert re.search("data.max_length(, which)? is 512", capsys.readouterr().err)
    assert 0 == train(name, [*words, "data.on_too_long=skip", *out])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[TeacherServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with TeacherServer(lambda body: "two and two is four. " * 12) as server:
        yield server


def paid(server: TeacherServer, *words: str) -> list[str]:
    return ["teacher.kind=api", "teacher.model=teacher", f"teacher.base_url={server.base_url}", *words]


def test_answers_that_may_not_fit_are_refused_before_one_is_paid(
    server: TeacherServer, write: Callable[..., Path], kd: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(*[{"prompt": f"{number}: "} for number in range(6)])

    assert 2 == kd(data, *paid(server, "teacher.max_tokens=256"))

    said = capsys.readouterr().err
    assert "6 of 6 prompts may need more tokens with their answers (up to 26" in said
    assert "Set data.max_length to 26" in said
    assert 0 == len(server.requests_seen)


def test_prompts_that_are_too_long_alone_are_never_asked(
    server: TeacherServer, write: Callable[..., Path], kd: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    data = write({"prompt": "Say: "}, {"prompt": FOX * 30}, {"prompt": FOX * 31})
    settings = ("teacher.max_tokens=8", "data.on_too_long=skip")

    assert 0 == kd(data, *paid(server, *settings), "train.batch_size=1")

    assert any("2 of 3 lines have more than 128 tokens" in each for each in caplog.messages)
    assert 1 == len(server.requests_seen)


def test_chats_stay_with_their_prompts_where_others_are_left_out(write: Callable[..., Path]) -> None:
    source = load_prompts(write({"prompt": FOX}, {"prompt": "Say: "}, {"prompt": "Tell: "})).only([1, 2])

    assert ["Say: ", "Tell: "] == [prompt.text for prompt in source.prompts] == source.documents()


def test_of_several_files_each_line_is_named_with_its_own(
    write: Callable[..., Path], read: Callable[..., TokenizedData]
) -> None:
    first = write(long(), long(65))
    first = first.rename(first.with_name("first.jsonl"))
    files = [first, write(long(), long(), long(70))]
    said = r"first\.jsonl: 2 of 5 .*: lines 2, lines 3 of data\.jsonl; the longest, line 3 of data\.jsonl, has 145"

    with pytest.raises(DataError, match=said):
        read(files, max_length=128)
    with pytest.raises(DataError, match=r"data\.jsonl, line 3: it has 145 tokens"):
        read(files, max_length=140)


@pytest.mark.parametrize("on_too_long, fate", [("skip", "left out"), ("truncate", "cut")])
def test_paid_answers_that_turn_out_too_long_are_counted(
    server: TeacherServer,
    write: Callable[..., Path],
    kd: Callable[..., int],
    caplog: pytest.LogCaptureFixture,
    on_too_long: str,
    fate: str,
) -> None:
    data = write({"prompt": "0: "}, {"prompt": "1: "})
    words = paid(server, "data.max_length=32", f"data.on_too_long={on_too_long}")

    assert 0 == kd(data, *words)

    assert any(
        f"the answers to 2 of 2 prompts had too many tokens for data.max_length (32) and were {fate}" in each
        for each in caplog.messages
    )


@pytest.mark.parametrize(
    "config, limit",
    [
        (GPT2Config(n_positions=77), 77),
        (LlamaConfig(max_position_embeddings=64, rope_scaling={"rope_type": "dynamic", "factor": 2.0}), None),
        (
            Qwen2Config(
                max_position_embeddings=64,
                rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            ),
            256,
        ),
        (Qwen2Config(max_position_embeddings=64, use_sliding_window=True, sliding_window=8), 64),
    ],
    ids=["n_positions", "dynamic", "yarn", "a sliding window"],
)
def test_the_limit_of_a_model_is_what_its_config_says(config: Any, limit: int | None) -> None:
    assert (limit or 64) <= (most_positions(config) or 0) <= (limit or 128)


def test_a_model_without_positions_has_no_limit() -> None:
    assert [None, None] == [most_positions(each) for each in (BloomConfig(), MambaConfig())]
