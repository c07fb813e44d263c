"""Training on answers that were cut off: no end token is learned behind them."""

from __future__ import annotations

import json

import pytest

from crashproof.distillation.data.answer_data import answer_data, read_answers
from crashproof.distillation.data.answered.prompts import load_prompts
from crashproof.distillation.data.api_data import ApiData
from crashproof.distillation.data.text_data import load_source, tokenized
from crashproof.distillation.data.tool_conversations import read_source
from crashproof.distillation.data.tool_data import tool_data
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.settings.data import DataConfig
from crashproof.distillation.settings.recipes.answer_generation import AnswerDataConfig
from crashproof.distillation.settings.recipes.tools import ToolDataConfig
from crashproof.distillation.text.chat import BUILTIN_TEMPLATE, end_of_turn
from crashproof.distillation.text.corpus import builtin_documents
from crashproof.distillation.text.tokenizer import train_tokenizer
from crashproof.pytorch.interrupts import Interrupts
from crashproof.teacher import AsyncTeacher, Endpoint, Teacher
from crashproof.testing import Fault, Faults, TeacherServer

SAID = "A keel is the long timber of a ship"
QUESTION = {"role": "user", "content": "What is a keel?"}
CHAT = {"messages": [QUESTION, {"role": "assistant", "content": SAID}]}
TEXT = {"prompt": "What is a keel? ", "teacher_text": SAID}
ANSWER = {"prompt": "What is a keel? ", "answer": SAID}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kiel"}'}}
CALLED = {
    "messages": [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "windy"},
        {"role": "assistant", "content": SAID},
    ],
    "tools": [WEATHER],
}
CUT = ["length", "MAX_TOKENS", "content_filter", "SAFETY", "never heard of"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "tokenizer"
    tokenizer = train_tokenizer(builtin_documents()[:50], vocab_size=300, folder=folder)
    tokenizer.chat_template = BUILTIN_TEMPLATE
    return tokenizer


def learned(tokens, tokenizer) -> str:
    """What the labels of the last sample spell."""
    labels = tokens.labels[int(tokens.starts[-2]) :].tolist()
    return tokenizer.decode([label for label in labels if label != IGNORED])


def written(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(line) + "\n")
    return path


def learned_of_text(line, tokenizer, tmp_path) -> str:
    config = DataConfig(path=written(tmp_path, line), max_length=200)
    return learned(tokenized(load_source(config), config, tokenizer, tmp_path / "cache"), tokenizer)


def learned_of_answers(line, tokenizer, tmp_path) -> str:
    config = AnswerDataConfig(path=written(tmp_path, line), max_length=200)
    data = answer_data(read_answers(config.path), config, tokenizer, tmp_path / "cache", has_rejected=False)
    return learned(data.tokens, tokenizer)


def learned_of_calls(line, tokenizer, tmp_path) -> str:
    config = ToolDataConfig(path=written(tmp_path, line), max_length=1000)
    source = read_source(config.path, has_one_call=False)
    data = tool_data(source, config, tokenizer, tmp_path / "cache", ends_with_call=False, has_masks=False)
    return learned(data.tokens, tokenizer)


READERS = {
    "a prompt's text": (learned_of_text, TEXT),
    "a conversation": (learned_of_text, CHAT),
    "an answer": (learned_of_answers, ANSWER),
    "a conversation's answer": (learned_of_answers, CHAT),
    "a conversation with calls": (learned_of_calls, CALLED),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("finish_reason", ["stop", "tool_calls", "STOP", None])
def test_the_end_of_a_complete_answer_is_learned(tokenizer, tmp_path, reader, finish_reason):
    read, line = READERS[reader]

    assert not read(line | {"finish_reason": finish_reason}, tokenizer, tmp_path).endswith(SAID)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("finish_reason", CUT)
def test_behind_an_answer_that_was_cut_off_nothing_is_learned(tokenizer, tmp_path, reader, finish_reason, caplog):
    read, line = READERS[reader]

    assert read(line | {"finish_reason": finish_reason}, tokenizer, tmp_path).endswith(SAID)
    assert 1 == sum("1 answers are cut off" in message for message in caplog.messages)


def test_the_end_of_a_call_that_was_cut_off_is_not_learned(tokenizer, tmp_path):
    line = CALLED | {"messages": CALLED["messages"][:2]}
    whole = learned_of_calls(line, tokenizer, tmp_path)
    cut = learned_of_calls(line | {"finish_reason": "length"}, tokenizer, tmp_path)

    assert whole.startswith(cut)
    assert cut.rstrip().endswith("}")
    assert end_of_turn(tokenizer) not in cut


@pytest.mark.parametrize("line", [{"prompt": "What is a keel?"}, {"messages": [QUESTION]}], ids=["text", "chat"])
@pytest.mark.parametrize("top_k", [None, 5], ids=["text alone", "with probabilities"])
def test_of_a_paid_teacher_too_where_such_answers_are_kept(tokenizer, tmp_path, open_tracker, line, top_k):
    with TeacherServer(lambda body: "a.a.a.a.", faults=Faults(script=[Fault.TRUNCATED])) as server:
        labels = labels_from_api(server, written(tmp_path, line), tokenizer, open_tracker(), top_k, keeps=True)

    assert "a.a." == tokenizer.decode(labels).strip()


@pytest.mark.parametrize("line", [{"prompt": "What is a keel?"}, {"messages": [QUESTION]}], ids=["text", "chat"])
def test_by_default_nothing_is_learned_of_them(tokenizer, tmp_path, open_tracker, line, caplog):
    with TeacherServer(lambda body: "a.a.a.a.", faults=Faults(script=[Fault.TRUNCATED])) as server:
        labels = labels_from_api(server, written(tmp_path, line), tokenizer, open_tracker(), None, keeps=False)

    assert [] == labels
    assert any("it was cut off before its end" in message for message in caplog.messages)


def labels_from_api(server, path, tokenizer, tracker, top_k, *, keeps: bool) -> list[int]:
    parameters = {"max_tokens": 50} | ({"logprobs": True, "top_logprobs": top_k} if top_k else {})
    asking = AsyncTeacher(
        "teacher",
        store=tracker.responses,
        endpoint=Endpoint(base_url=server.base_url),
        parameters=parameters,
        keeps_truncated=keeps,
    )
    with Teacher(asking) as teacher:
        data = ApiData(
            load_prompts(path),
            tokenizer,
            max_length=200,
            top_k=top_k,
            ahead_samples=0,
            open_teacher=lambda tracker: Teacher(asking),
            interrupts=Interrupts(),
        )
        data.connect(teacher, iter([0]))
        return [label for label in data.batch([0]).labels.flatten().tolist() if label != IGNORED]
