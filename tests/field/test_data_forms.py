"""Lines in the forms that people have: each is learned as what it says, or refused in words that name the form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from learned_text import learned, texts_of, tokens_of, write_lines
from tool_lines import CLOCK, TEMPLATES, WEATHER, answering, asking, call, calling, result, whole

from crashproof.distillation.data.answer_data import read_answers
from crashproof.errors import DataError
from crashproof.samples.forms import FORMS as FORMS_READ
from crashproof.samples.forms import read_sample
from crashproof.samples.rules import Preferences, SampleRules

Learn = Callable[..., list[str]]

USER, SAID = {"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}
WORSE = {"role": "assistant", "content": "Five."}
CALL = {"name": "search", "arguments": '{"city": "Rome"}'}
GPT = [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]


@pytest.fixture
def learn(tmp_path: Path, field_tokenizer: Any) -> Learn:
    """What a recipe learns of lines."""

    def learn_lines(recipe: str, *lines: Any, **settings: Any) -> list[str]:
        return learned(recipe, write_lines(tmp_path / "data.jsonl", *lines), field_tokenizer, **settings)

    return learn_lines


FORMS = {
    "our own": {"prompt": "Two and two? ", "teacher_text": "Four."},
    "a prompt and its answer": {"prompt": "Two and two? ", "answer": "Four."},
    "TRL's prompt and completion": {"prompt": "Two and two? ", "completion": "Four."},
    "TRL's prompt and completion as messages": {"prompt": [USER], "completion": [SAID]},
    "messages as a prompt, text as a completion": {"prompt": [USER], "completion": "Four."},
    "OpenAI's chat": {"messages": [USER, SAID]},
    "a chat with tools that are null": {"messages": [USER, SAID | {"tool_calls": []}], "tools": None},
    "a chat as JSON in a cell": {"messages": json.dumps([USER, SAID])},
    "a chat as a column for each field": {"messages": {"role": ["user", "assistant"], "content": ["2?", "Four."]}},
    "ShareGPT": {"conversations": GPT, "id": "identity_0"},
    "ShareGPT with a system beside it": {"conversations": GPT, "system": "Be brief.", "tools": ""},
    "ShareGPT's names in messages": {"messages": GPT},
    "roles in conversations": {"conversations": [USER, SAID]},
    "a chat under another name": {"dialogue": [USER, SAID], "source": "forum"},
    "Alpaca": {"instruction": "Add.", "input": "Two and two", "output": "Four."},
    "Alpaca without an input": {"instruction": "Add two and two.", "input": "", "output": "Four."},
    "Alpaca with a system": {"instruction": "Two and two?", "output": "Four.", "system": "Be brief.", "history": []},
    "Alpaca with its rendered text": {
        "instruction": "Add.",
        "input": "",
        "output": "Four.",
        "text": "### Add. Four.",
    },
    "Dolly": {"instruction": "Add.", "context": "2, 2", "response": "Four.", "category": "open_qa"},
    "question and answer": {"question": "Two and two?", "answer": "Four."},
    "OpenOrca": {"id": "niv.1", "system_prompt": "", "question": "Two and two?", "response": "Four."},
}


@pytest.mark.parametrize("line", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("recipe", ["kd", "answer_generation"])
def test_each_form_teaches_its_answer_and_not_its_question(learn: Learn, recipe: str, line: Any) -> None:
    assert ["Four."] == learn(recipe, line)


def test_a_text_is_learned_as_a_whole(learn: Learn) -> None:
    assert ["The quick brown fox."] == learn("kd", {"text": "The quick brown fox.", "meta": {"set": "pile"}})


def test_mixed_forms_in_one_file_are_all_read_and_counted(learn: Learn, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    assert ["Four."] * 4 == learn(
        "kd", *(FORMS[name] for name in ("ShareGPT", "Alpaca", "OpenAI's chat", "ShareGPT"))
    )

    assert "data.jsonl: 2 conversations, 1 instructions, 1 chats." in caplog.text


def test_the_student_reads_system_history_and_input(tmp_path: Path, field_tokenizer: Any) -> None:
    line = {
        "system": "Be brief.",
        "history": [["One and one?", "Two."]],
        "instruction": "Add.",
        "input": "Two and two",
        "output": "Four.",
    }

    path = write_lines(tmp_path / "data.jsonl", line)
    ((read, said),) = texts_of(tokens_of("answer_generation", path, field_tokenizer), field_tokenizer)

    assert all(part in read for part in ("Be brief.", "One and one?", "Two.", "Add.\nTwo and two", "Four."))
    assert said.startswith("Four.")


def test_messages_of_weight_zero_are_read_and_not_learned(learn: Learn) -> None:
    line = {"messages": [USER, SAID | {"weight": 0}, USER, SAID | {"content": "Four again.", "weight": 1}]}

    assert ["Four again."] == learn("kd", line)


def test_a_line_in_which_every_weight_is_zero_is_left_out_and_counted(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    untaught = {"messages": [USER, SAID | {"weight": 0}]}

    assert ["Four."] == learn("kd", untaught, FORMS["OpenAI's chat"], untaught)
    assert "2 of 3 are left out because no answer is to be learned" in caplog.text
    assert "data.jsonl, line 1" in caplog.text


def test_earlier_answers_in_a_prompt_of_messages_are_not_learned(learn: Learn) -> None:
    assert ["Four."] == learn("kd", {"prompt": [USER, WORSE, USER], "completion": [SAID]})


PAIRS = {
    "texts": {"prompt": "Two and two? ", "chosen": "Four.", "rejected": "Five."},
    "messages": {"prompt": [USER], "chosen": [SAID], "rejected": [WORSE]},
    "messages that repeat the prompt": {"chosen": [USER, SAID], "rejected": [USER, WORSE]},
    "a prompt as text beside messages that repeat it": {
        "prompt": "Two and two?",
        "chosen": [USER, SAID],
        "rejected": [USER, WORSE],
        "messages": [USER, SAID],
    },
    "OpenAI's": {"input": {"messages": [USER]}, "preferred_output": [SAID], "non_preferred_output": [WORSE]},
}


@pytest.mark.parametrize("line", PAIRS.values(), ids=PAIRS)
def test_a_preference_pair_is_refused_unless_the_better_answer_is_asked_for(learn: Learn, line: Any) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl, line 1: it is a pair of a better and a worse answer"):
        learn("kd", line)

    assert ["Four."] == learn("kd", line, preferences="chosen")


@pytest.mark.parametrize("line", PAIRS.values(), ids=PAIRS)
def test_answer_generation_compares_pairs_in_every_form(tmp_path: Path, line: Any, field_tokenizer: Any) -> None:
    source = read_answers(write_lines(tmp_path / "data.jsonl", line))

    read = source.line(source.samples[0])
    assert ("Four.", "Five.") == (read.answer, read.rejected)


def test_answers_that_are_labelled_good_or_bad(learn: Learn) -> None:
    good, bad = ({"prompt": "Two? ", "completion": said, "label": said == "Four."} for said in ("Four.", "Five."))

    with pytest.raises(DataError, match='line 1: it is an answer with a "label"'):
        learn("kd", good, bad)
    assert ["Four."] == learn("kd", good, bad, preferences="chosen")


REFUSED = {
    "a result of a batch": (
        {"id": "b", "custom_id": "1", "response": {"status_code": 200, "body": {"choices": [{"message": SAID}]}}},
        "it is a result of a batch API, which has the answer and not its prompt",
    ),
    "a request of a batch": (
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [USER]}},
        "it is a request of a batch API, which has no answer",
    ),
    "a completion": ({"object": "chat.completion", "choices": [{"message": SAID}]}, "it is a completion as an API"),
    "SQuAD": (
        {"context": "x", "question": "y", "answers": {"text": ["z"]}},
        "its fields are: context, question, ans",
    ),
    "two conversations": ({"first": [USER, SAID], "second": [USER, SAID]}, "several conversations: first, second"),
    "a function call that is no JSON": (
        {"conversations": [GPT[0], {"from": "function_call", "value": "f("}]},
        "is no JSON",
    ),
    "tools that are text": ({"messages": [USER, SAID], "tools": "search"}, '"tools" must be a list'),
    "a tool without a name": ({"messages": [USER, SAID], "tools": [{"type": "function"}]}, "a tool must be"),
    "a pair of numbers": ({"prompt": 1, "chosen": 2, "rejected": 3}, "it is a pair of a better and a worse answer"),
    "an unknown role": ({"messages": [USER, {"role": "asistant", "content": "x"}]}, 'the unknown role "asistant"'),
    "a history that is no list of pairs": (FORMS["Alpaca"] | {"history": ["x"]}, '"history" must be a list of pairs'),
}


@pytest.mark.parametrize("line, reason", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_in_words_that_name_it(learn: Learn, line: Any, reason: str) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl, line 2: ") as caught:
        learn("kd", FORMS["our own"], line)

    assert reason in str(caught.value)


TOOLS = {
    "a list": [WEATHER, CLOCK],
    "JSON in a string": json.dumps([WEATHER, CLOCK]),
    "each JSON in a string": [json.dumps(WEATHER), json.dumps(CLOCK)],
    "functions without their wrapping": [WEATHER["function"], CLOCK["function"]],
    "the form of Anthropic's API": [
        {"name": "search", "input_schema": WEATHER["function"]["parameters"]},
        {"name": "clock", "input_schema": {"type": "object"}},
    ],
    "the form of the Responses API": [
        {"type": "function", **WEATHER["function"]},
        {"type": "function", "name": "clock"},
    ],
}
ANSWERED = [asking(), calling(call("search", {"city": "Rome"})), result("{}"), answering("It is warm.")]
CALLS = {
    "arguments in a string": calling(call("search", {"city": "Rome"})),
    "arguments as an object": calling(
        {"id": "call_1", "type": "function", "function": CALL | {"arguments": {"city": "Rome"}}}
    ),
    "arguments encoded twice": calling(call("search", json.dumps(json.dumps({"city": "Rome"})))),
    "an old function call": {"role": "assistant", "content": None, "function_call": CALL},
    "a call without its wrapping": {"role": "assistant", "content": "", "tool_calls": [CALL]},
    "a call in ShareGPT's form": {"from": "function_call", "value": json.dumps(CALL)},
    "a part of content": {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "call_1", "name": "search", "input": {"city": "Rome"}}],
    },
}
RESULTS = {
    "a tool": {"role": "tool", "tool_call_id": "call_1", "content": "{}"},
    "a function": {"role": "function", "name": "search", "content": "{}"},
    "an observation": {"from": "observation", "value": "{}"},
    "an object": {"role": "tool", "content": {}},
}
_HERMES = '<tool_call>\n{"name": "search", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.mark.parametrize("tools", TOOLS.values(), ids=TOOLS)
@pytest.mark.parametrize("recipe", ["kd", "answer_generation", "process", "tool_select"])
def test_tools_in_every_form_are_shown_to_the_student(
    tmp_path: Path, recipe: str, tools: Any, field_tokenizer: Any
) -> None:
    path = write_lines(
        tmp_path / "data.jsonl", {"messages": ANSWERED[: 2 if recipe == "tool_select" else 4], "tools": tools}
    )

    ((read, _),) = texts_of(tokens_of(recipe, path, field_tokenizer), field_tokenizer)

    assert "<|tools|>\nsearch {city: string" in read


@pytest.mark.parametrize("tools", TOOLS.values(), ids=TOOLS)
@pytest.mark.parametrize("made", CALLS.values(), ids=CALLS)
def test_a_call_in_every_form_is_learned_as_the_same_text(learn: Learn, made: Any, tools: Any) -> None:
    line = {"conversations" if "from" in made else "messages": [asking(), made], "tools": tools}

    assert [_HERMES] * 3 == [*learn("kd", line), *learn("process", line), *learn("answer_generation", line)]


@pytest.mark.parametrize("given", RESULTS.values(), ids=RESULTS)
def test_a_result_in_every_form_is_read_as_a_tools(tmp_path: Path, given: Any, field_tokenizer: Any) -> None:
    line = {"messages": [*ANSWERED[:2], given, ANSWERED[3]], "tools": [WEATHER]}

    ((read, said),) = texts_of(
        tokens_of("process", write_lines(tmp_path / "d.jsonl", line), field_tokenizer), field_tokenizer
    )

    assert "<|tool|>\n{}<|end|>" in read
    assert said.endswith("It is warm.<|end|>\n")


def test_results_in_the_form_of_anthropics_api_are_messages_of_their_own(
    tmp_path: Path, field_tokenizer: Any
) -> None:
    parts = [{"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "{}"}]}]
    line = {
        "messages": [
            asking(),
            CALLS["a part of content"],
            {"role": "user", "content": parts},
            answering("It is warm."),
        ],
        "tools": TOOLS["the form of Anthropic's API"],
    }

    ((read, _),) = texts_of(
        tokens_of("process", write_lines(tmp_path / "d.jsonl", line), field_tokenizer), field_tokenizer
    )

    assert "<|tool|>\n{}<|end|>\n<|assistant|>\nIt is warm." in read


@pytest.mark.parametrize("template", ["builtin", "qwen", "llama"])
def test_kd_and_process_read_the_same_line_alike(tmp_path: Path, template: str, field_tokenizer: Any) -> None:
    field_tokenizer.chat_template = TEMPLATES[template]
    path = write_lines(tmp_path / "d.jsonl", whole())

    read = [texts_of(tokens_of(recipe, path, field_tokenizer), field_tokenizer) for recipe in ("kd", "process")]

    assert read[0] == read[1]
    assert '\\"city' not in read[0][0][0]


def test_no_text_for_arguments_is_no_arguments(learn: Learn) -> None:
    line = {"messages": [asking(), calling(call("clock", ""))], "tools": [CLOCK]}

    (said,) = learn("tool_select", line)

    assert '{"name": "clock", "arguments": {}}' in said


def test_half_a_character_in_arguments_is_named(learn: Learn) -> None:
    line = {"messages": [asking(), calling(call("search", r'{"city": "\ud83d"}'))], "tools": [WEATHER]}

    with pytest.raises(DataError, match=r"line 1: the arguments of search are no text: .*lone surrogate"):
        learn("kd", line)


def test_a_rejected_answer_that_a_recipe_does_not_read_is_counted(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    assert ["Four."] == learn("kd", FORMS["our own"] | {"rejected": "Five."})
    assert "in 1 of 1: a quality or a rejected answer is not read" in caplog.text


def test_process_leaves_lines_without_a_call_out_and_counts_them(
    learn: Learn, caplog: pytest.LogCaptureFixture
) -> None:
    without_call = {"messages": [USER, SAID], "tools": [WEATHER]}

    assert 1 == len(learn("process", without_call, whole(), without_call))
    assert "2 of 3 are left out because it must have at least one tool call, and has 0" in caplog.text


def test_process_does_not_learn_a_turn_of_weight_zero(learn: Learn) -> None:
    line = whole()
    line["messages"][1]["weight"] = 0

    assert ["It is 21.5 degrees in Rome."] == learn("process", line)


GUIDE = Path(__file__).parents[2] / "docs" / "DISTILLATION_GUIDE.md"


def test_the_guide_has_an_example_of_each_form_in_the_order_in_which_they_are_tried() -> None:
    section = GUIDE.read_text().partition("### Forms of a line")[2].partition("###")[0]
    rows = re.findall(r"^\| ([^|`]+) \| `(\{.*?\})`", section, re.MULTILINE)

    assert [form.name for form in FORMS_READ] == [name for name, _ in rows]
    for name, example in rows:
        line = json.loads(example)
        assert name == next(form.name for form in FORMS_READ if form.matches(line))
        if "refused" not in section.partition(example)[2].partition("\n")[0]:
            read_sample(line, SampleRules(preferences=Preferences.PAIRS))
