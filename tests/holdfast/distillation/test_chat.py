import pytest
from transformers import PreTrainedTokenizerFast

from holdfast.distillation.chat import render_chat

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And two?"},
    {"role": "assistant", "content": "Six."},
]


def answers(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    text, spans = render_chat(messages, tokenizer)
    return [text[start:end] for start, end in spans]


def test_every_turn_of_the_assistant_is_an_answer_with_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    assert ["Four.<|end|>\n", "Six.<|end|>\n"] == answers(TURNS, tokenizer)


def test_the_text_holds_every_turn_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    text, _ = render_chat(TURNS, tokenizer)
    places = [text.index(turn["content"]) for turn in TURNS]

    assert places == sorted(places)


def test_the_tokenizers_own_template_is_used(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )

    assert ["Four.;", "Six.;"] == answers(TURNS, tokenizer)


def test_a_template_that_rewrites_what_was_said_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )

    with pytest.raises(ValueError, match="rewrites earlier messages"):
        render_chat(TURNS, tokenizer)


def test_a_template_that_refuses_says_why(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system message, please') }}"

    with pytest.raises(ValueError, match=r"refuses the messages .*no system message, please"):
        render_chat(TURNS, tokenizer)


def test_a_template_that_shortens_earlier_answers_does_not_shift_the_spans(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """As templates do that drop the reasoning of all but the last answer."""
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )

    assert "Six.;" in answers(TURNS, tokenizer)[-1]
    assert "Four.;" == answers(TURNS, tokenizer)[0]
