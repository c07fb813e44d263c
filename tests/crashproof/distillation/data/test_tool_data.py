import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_lines import asking, call, calling, line, one_call, whole
from transformers import PreTrainedTokenizerFast

from crashproof.distillation.data.tool_conversations import read_source
from crashproof.distillation.data.tool_data import ToolBatch, ToolData, tool_data
from crashproof.distillation.data.tool_tokens import ARGUMENTS, INTEGRATION, JSON, SELECTION
from crashproof.distillation.losses.divergences import IGNORED
from crashproof.distillation.losses.tool_calls import allowed_entries
from crashproof.distillation.settings.recipes.tools import ToolDataConfig
from crashproof.errors import DataError

MakeData = Callable[..., ToolData]
LINES = [whole(), one_call("clock", {}), one_call("search_web", {"query": "fox"}), whole("Nothing to say.")]


@pytest.fixture
def data(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> MakeData:
    def made(*lines: dict[str, Any], ends_with_call: bool = False, has_masks: bool = True, **config: Any) -> ToolData:
        path = tmp_path / "lines.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        source = read_source(path, has_one_call=ends_with_call)
        settings = ToolDataConfig(**({"max_length": 4096} | config))
        return tool_data(
            source, settings, tokenizer, tmp_path / "cache", ends_with_call=ends_with_call, has_masks=has_masks
        )

    return made


def predicted(batch: ToolBatch, rows: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(batch.targets.flatten()[rows]))


def test_counts_are_what_a_batch_has(data: MakeData) -> None:
    made = data(*LINES)

    for indices in ([0], [3, 1], [0, 1, 2, 3], [2, 2]):
        batch = made.batch(indices)
        parts = batch.parts.flatten()[batch.rows]
        expected = {
            "tokens": batch.num_counted(),
            "selection": int((parts & SELECTION).bool().sum()),
            "arguments": int((parts & ARGUMENTS).bool().sum()),
            "json": int((parts & JSON).bool().sum()),
            "integration": int((parts & INTEGRATION).bool().sum()),
        }
        assert expected == made.counts(indices)


def test_an_answer_that_restates_nothing_counts_nothing(data: MakeData) -> None:
    made = data(*LINES)

    assert 0 == made.counts([3])["integration"] == made.counts([1])["integration"]
    assert made.counts([0])["integration"] > 0


def test_rows_are_partitioned_without_rest_or_overlap(data: MakeData) -> None:
    batch = data(*LINES).batch([0, 2])

    together = torch.cat([batch.json_rows, batch.other_rows, batch.free_rows])

    assert batch.rows.tolist() == together.sort().values.tolist()
    assert min(map(len, (batch.json_rows, batch.other_rows, batch.free_rows))) > 0


def test_a_row_describes_the_token_that_it_predicts(data: MakeData, tokenizer: PreTrainedTokenizerFast) -> None:
    batch = data(*LINES).batch([2, 0])

    assert '{"query": "fox"}' in predicted(batch, batch.json_rows, tokenizer)
    is_integration = batch.share(INTEGRATION, batch.rows).bool()
    assert "21.5" in predicted(batch, batch.rows[is_integration], tokenizer)


def test_every_mask_allows_what_stands_there(data: MakeData, tokenizer: PreTrainedTokenizerFast) -> None:
    batch = data(*LINES).batch([0, 1, 2])

    is_allowed = allowed_entries(batch.masks[batch.mask_of.flatten()[batch.json_rows]], len(tokenizer))

    assert len(batch.masks) == len(batch.json_rows)
    assert is_allowed.gather(1, batch.targets.flatten()[batch.json_rows][:, None]).all()
    assert not is_allowed.all(dim=1).any()


def test_without_masks_the_same_rows_belong_to_other_parts(data: MakeData) -> None:
    with_masks, without = data(*LINES).batch([0, 1]), data(*LINES, has_masks=False).batch([0, 1])

    assert (0, 0) == (len(without.json_rows), without.masks.numel())
    both = torch.cat([with_masks.json_rows, with_masks.other_rows]).sort().values
    assert both.tolist() == without.other_rows.tolist()


def test_every_target_is_among_its_choices_and_most_rows_have_no_other(data: MakeData) -> None:
    batch = data(*LINES).batch([0, 1, 2, 3])

    choices = batch.choices.flatten(0, 1)[batch.rows]

    assert (choices == batch.targets.flatten()[batch.rows][:, None]).any(dim=1).all()
    num_choices = (choices >= 0).sum(dim=1)
    assert 0 < (num_choices > 1).sum() < len(batch.rows) / 4
    # `search` and `search_web` part where the name ends, `clock` where it begins.
    assert {1, 2} == set(num_choices.tolist())


def test_a_batch_is_the_same_each_time_and_after_a_new_start(data: MakeData) -> None:
    made = data(*LINES)
    first = made.batch([0, 2])

    for batch in (made.batch([0, 2]), data(*LINES).batch([0, 2])):
        for name in ("input_ids", "rows", "parts", "choices", "json_rows", "masks", "mask_of"):
            assert torch.equal(getattr(first, name), getattr(batch, name))


def test_tokens_are_computed_once(data: MakeData, tmp_path: Path) -> None:
    data(*LINES)
    (kept,) = (tmp_path / "cache").iterdir()
    written_at = kept.stat().st_mtime_ns

    data(*LINES)
    assert written_at == kept.stat().st_mtime_ns

    kept.write_bytes(b"damaged")
    assert 4 == len(data(*LINES))


@pytest.mark.parametrize("change", [{"max_length": 2048}, {"restated_words": 1}])
def test_what_decides_the_tokens_decides_their_file(data: MakeData, tmp_path: Path, change: dict[str, int]) -> None:
    data(*LINES)
    data(*LINES, **change)

    assert 2 == len(list((tmp_path / "cache").iterdir()))


def test_where_one_call_ends_the_sample_nothing_before_it_is_learned(
    data: MakeData, tokenizer: PreTrainedTokenizerFast
) -> None:
    earlier = [asking("Are you there?"), {"role": "assistant", "content": "Yes."}]
    made = data(line(*earlier, *one_call()["messages"]), ends_with_call=True)

    labels = made.tokens.labels
    expected = '<tool_call>\n{"name": "search", "arguments": {"city": "Rome"}}\n</tool_call><|end|>\n'
    assert expected == tokenizer.decode(labels[labels != IGNORED])


def test_a_sequence_that_is_too_long_names_its_line(data: MakeData) -> None:
    words = r"lines\.jsonl, line 2: it has [\d,]+ tokens, .* and data\.max_length is 900"
    with pytest.raises(DataError, match=words):
        data(one_call(), line(asking("fox " * 600), calling(call("clock", {}))), max_length=900)


def test_arguments_that_only_the_engine_refuses_name_their_line(data: MakeData) -> None:
    day = {"type": "object", "properties": {"on": {"type": "string", "format": "date"}}}
    tool = {"type": "function", "function": {"name": "day", "parameters": day}}

    with pytest.raises(DataError, match=r"line 1: the schema of day, as llguidance reads it, does not allow"):
        data(line(asking(), calling(call("day", {"on": "tomorrow"})), tools=[tool]))


def test_a_template_that_refuses_names_the_line(data: MakeData, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('no tools here') }}"

    with pytest.raises(DataError, match=r"lines\.jsonl, line 1: the chat template refuses .*no tools here"):
        data(one_call())


def test_a_digest_tells_lines_orders_and_what_counts_in_them_apart(data: MakeData) -> None:
    others = [
        data(*reversed(LINES)),
        data(*LINES[:-1], whole("Nothing to tell.")),
        data(LINES[0], one_call("search_web", {"query": "dog"}), *LINES[2:]),
    ]
    digests = [data(*LINES).digest(), *(each.digest() for each in others)]

    assert digests[0] == data(*LINES).digest()
    assert len(digests) == len(set(digests))
