import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_lines import TEMPLATES, WEATHER
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.answer_data import AnswerBatch, AnswerData, answer_data, read_answers
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.settings.recipes.answer_generation import AnswerDataConfig
from crashproof.errors import DataError

MakeData = Callable[..., AnswerData]
PLAIN = {"prompt": "Two and two? ", "answer": "Four."}
JUDGED = {"prompt": "The fox? ", "answer": "It is quick.", "quality": 0.25}
PAIR = {"prompt": "The dog? ", "answer": "Lazy.", "rejected": "Brown and quick."}
CALL = {"id": "a", "type": "function", "function": {"name": "search", "arguments": '{"city": "Rome"}'}}
CHAT = {
    "messages": [
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": '{"degrees": 12}'},
        {"role": "assistant", "content": "It has 12 degrees."},
    ],
    "rejected": "It has 21 degrees.",
}


def written(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def data(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> MakeData:
    def made(*lines: dict[str, Any], has_rejected: bool = True, max_length: int = 4096) -> AnswerData:
        return answer_data(
            read_answers(written(tmp_path, *lines)),
            AnswerDataConfig(max_length=max_length),
            tokenizer,
            tmp_path / "cache",
            has_rejected=has_rejected,
        )

    return made


def predicted(batch: AnswerBatch, sequence: int, tokenizer: PreTrainedTokenizerFast) -> str:
    rows = batch.rows[batch.sequence_of_row == sequence]
    return str(tokenizer.decode(batch.targets.flatten()[rows]))


def test_answers_are_learned_to_their_end_and_rejected_ones_lie_below_them(
    data: MakeData, tokenizer: PreTrainedTokenizerFast
) -> None:
    batch = data(PLAIN, PAIR, JUDGED).batch([2, 1, 0])

    said = [predicted(batch, sequence, tokenizer) for sequence in range(4)]
    assert ["It is quick.<|end|>", "Lazy.<|end|>", "Four.<|end|>", "Brown and quick.<|end|>"] == said
    assert ([1], [3]) == (batch.chosen.tolist(), batch.rejected.tolist())
    assert [0, 1, 1, 0] == batch.is_learned.tolist()
    assert [0.25, 0, 0, 0] == batch.quality.tolist()


def test_counts_are_what_a_batch_has(data: MakeData) -> None:
    made = data(PLAIN, PAIR, JUDGED, CHAT)

    for indices in ([0], [2, 1], [0, 1, 2, 3], [3, 3]):
        batch = made.batch(indices)
        num_answers = len(indices)
        expected = {
            "tokens": int(batch.num_tokens[:num_answers].sum()),
            "learned": int((batch.num_tokens * batch.is_learned).sum()),
            "judged": len(batch.chosen) + sum(index == 2 for index in indices),
        }
        assert expected == made.counts(indices)
        assert batch.num_counted() == int(batch.num_tokens.sum())


def test_without_rejected_answers_a_batch_is_smaller_and_counts_the_same(data: MakeData) -> None:
    made = data(PLAIN, PAIR, has_rejected=False)

    assert 2 == len(made.batch([0, 1]).input_ids)
    assert 0 == len(made.batch([0, 1]).chosen)
    assert 3 == len(made.with_rejected().batch([0, 1]).input_ids)
    assert [1] == made.pairs()


def test_the_mean_is_over_the_tokens_of_a_sequence(data: MakeData) -> None:
    batch = data(PLAIN, PAIR).batch([0, 1])
    costs = torch.rand(len(batch.rows), generator=torch.Generator().manual_seed(0))

    means = [-costs[batch.sequence_of_row == sequence].mean() for sequence in range(3)]

    torch.testing.assert_close(batch.mean_logprobs(costs), torch.stack(means))


@pytest.mark.parametrize("template", ["builtin", "qwen"])
def test_of_a_conversation_the_last_turn_is_learned(
    data: MakeData, tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    with_tools = CHAT | {"tools": [WEATHER]}

    for line in (CHAT, with_tools):
        batch = data(line).batch([0])
        said = [predicted(batch, sequence, tokenizer) for sequence in (0, 1)]
        assert ["12 degrees" in said[0], "21 degrees" in said[1]] == [True, True]
        assert "Rome" not in "".join(said)
        assert "Rome" in tokenizer.decode(batch.input_ids[0])
    assert "Search the weather" in tokenizer.decode(batch.input_ids[0])


def test_an_answer_of_less_than_the_best_quality_is_no_reference(data: MakeData) -> None:
    made = data(PLAIN, JUDGED, JUDGED | {"quality": 1})

    counted = [int((made.reference_tokens().batch([index]).labels != IGNORED).sum()) for index in range(3)]

    assert [True, False, True] == [num > 0 for num in counted]
    assert 0 < made.tokens.counts([1])["tokens"]


def test_tokens_are_read_back_from_the_cache(data: MakeData, tmp_path: Path) -> None:
    first = data(PLAIN, PAIR, JUDGED)
    before = [path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()]

    second = data(PLAIN, PAIR, JUDGED)

    assert first.tokens.sha256() == second.tokens.sha256()
    assert before == [path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()]


@pytest.mark.parametrize(
    "line, reason",
    [
        ({"prompt": "x"}, '"answer" must be non-empty text'),
        ({"answer": "x"}, '"prompt" must be non-empty text'),
        (PLAIN | {"quality": 1.5}, '"quality" must be a number from 0 to 1, and is 1.5'),
        (PLAIN | {"quality": -0.1}, "and is -0.1"),
        (PLAIN | {"quality": True}, "and is true"),
        (PLAIN | {"quality": "good"}, 'and is "good"'),
        (PLAIN | {"rejected": " Four. "}, '"rejected" is the same as the answer'),
        (PLAIN | {"rejected": ""}, '"rejected" must be non-empty text'),
        (PAIR | {"quality": 0.5}, 'it has both "quality" and "rejected"'),
        (CHAT | {"prompt": "x"}, 'it has "prompt" or "answer" beside "messages"'),
        ({"messages": []}, '"messages" must be a non-empty list'),
        ({"messages": CHAT["messages"][:1]}, '"messages" must be a list with at least a question and an answer'),
        ({"messages": CHAT["messages"][:3]}, "the last message must be an answer of the assistant"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}, r"message 1 \(user\) must be text"),
        ({"messages": ["x", "y"]}, 'message 1 needs a "role"'),
        (CHAT | {"tools": [WEATHER | {"function": WEATHER["function"] | {"name": "find"}}]}, "which is not offered"),
    ],
)
def test_a_line_that_cannot_be_used_names_itself(tmp_path: Path, line: dict[str, Any], reason: str) -> None:
    path = written(tmp_path, PLAIN, line)

    with pytest.raises(DataError, match=rf"lines\.jsonl, line 2: .*{reason}"):
        read_answers(path)


@pytest.mark.parametrize(
    "line",
    [
        PLAIN | {"answer": " \n"},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]},
    ],
    ids=["text", "message"],
)
def test_an_empty_answer_is_left_out_and_counted(
    tmp_path: Path, line: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    source = read_answers(written(tmp_path, PLAIN, line))

    assert [1] == [sample["line"] for sample in source.samples]
    assert "1 of 2 are left out because the" in caplog.text


@pytest.mark.parametrize("arguments", ["{", "[1]", None, 3], ids=["no JSON", "no object", "none", "a number"])
def test_arguments_that_no_template_accepts_are_refused(tmp_path: Path, arguments: Any) -> None:
    call = CALL | {"function": {"name": "search", "arguments": arguments}}
    messages = [CHAT["messages"][0], CHAT["messages"][1] | {"tool_calls": [call]}, *CHAT["messages"][2:]]

    with pytest.raises(DataError, match=r"line 1: the arguments of search are not (text|valid JSON|a JSON object)"):
        read_answers(written(tmp_path, {"messages": messages}))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it contains no samples"):
        read_answers(written(tmp_path))


@pytest.mark.parametrize(
    "line, reason",
    [
        (PLAIN | {"answer": "four " * 40}, "line 2: it has"),
        (PAIR | {"rejected": "brown " * 40}, "line 2: it has"),
        (PLAIN | {"prompt": "two " * 60}, "which leaves no room for an answer"),
    ],
    ids=["answer", "rejected", "prompt"],
)
def test_a_line_that_is_too_long_is_refused_and_not_truncated(
    data: MakeData, line: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=f"{reason}.*Raise data.max_length"):
        data(PLAIN, line, max_length=32)


def test_all_text_is_there_for_a_tokenizer(tmp_path: Path) -> None:
    documents = "".join(read_answers(written(tmp_path, PAIR, CHAT)).documents())

    assert all(text in documents for text in ("The dog?", "Lazy.", "Brown", "Rome?", "search", "21 degrees"))


def test_a_digest_tells_lines_orders_qualities_and_rejected_answers_apart(data: MakeData) -> None:
    of_lines = [
        [PLAIN, JUDGED, PAIR],
        [JUDGED, PLAIN, PAIR],
        [PLAIN, JUDGED | {"quality": 0.5}, PAIR],
        [PLAIN, JUDGED, PAIR | {"rejected": "Slow."}],
        [PLAIN, JUDGED, PAIR | {"answer": "Quick."}],
    ]
    digests = [data(*lines).digest() for lines in of_lines]

    assert len(digests) == len({*digests, data(*of_lines[0]).digest()})
    assert digests[0] != data(*of_lines[0], has_rejected=False).digest()
