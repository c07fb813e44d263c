"""A generated task of calling tools."""

from __future__ import annotations

import json
from random import Random

from crashproof.distillation.data.tool_conversations import ToolSource
from crashproof.distillation.tasks.tools import TOOLS, ResultShape, TaskTool
from crashproof.distillation.tasks.values import KINDS

__all__ = ["generated_source"]

_FEWEST_OFFERED, _MOST_OFFERED = 4, 8
_SHARE_OF_OPTIONS = 0.5
_OPENINGS = ("", "", "", "Please: ", "Hi! ", "One more thing. ", "Quick question. ")
_CLOSINGS = (".", "", ".", ", please.", ". Thanks!")


def generated_source(num_samples: int, *, seed: int, has_answers: bool) -> ToolSource:
    """Requests to an assistant that is offered some tools, and its call of one of them.

    At least half of the other tools offered come from the same domain: names that begin alike, and descriptions that
    differ in a word. Dates, times, amounts and units are said as people say them, and called as the schema wants.

    Args:
        num_samples: Number of lines.
        seed: Seed of the generator; the same seed gives the same lines.
        has_answers: Continue after the call with the tool's result and an answer that restates some of it.
    """
    rng = Random(seed)  # noqa: S311 - it makes exercises, not secrets
    return ToolSource.generated(
        [_sample(number, rng, has_answers=has_answers) for number in range(1, num_samples + 1)]
    )


def _sample(number: int, rng: Random, *, has_answers: bool) -> dict[str, object]:
    tool = rng.choice(TOOLS)
    offered = _offered(tool, rng)
    given = [name for name in tool.optional if rng.random() < _SHARE_OF_OPTIONS]
    kinds = {**tool.required, **{name: tool.optional[name] for name in given}}
    arguments = {name: KINDS[kind].draw(rng) for name, kind in kinds.items()}
    said = {name: KINDS[kind].say(arguments[name], rng) for name, kind in kinds.items()}
    request = rng.choice(tool.requests).format(**said)
    clauses = [KINDS[tool.optional[name]].clause.format(said[name]) for name in given]
    call = {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": tool.name, "arguments": json.dumps(arguments)},
    }
    messages: list[dict[str, object]] = [
        {"role": "user", "content": rng.choice(_OPENINGS) + " ".join([request, *clauses]) + rng.choice(_CLOSINGS)},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    if has_answers:
        result, leaves = _draw_result(tool.result, rng)
        answer = rng.choice(tool.answers).format(**{**said, **leaves})
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)},
            {"role": "assistant", "content": answer[0].upper() + answer[1:]},
        ]
    return {
        "messages": messages,
        "tools": [{"type": "function", "function": each.function()} for each in offered],
        "line": number,
    }


def _offered(tool: TaskTool, rng: Random) -> list[TaskTool]:
    """The tool among others, most of them near misses."""
    near = [each for each in TOOLS if each.domain == tool.domain and each is not tool]
    far = [each for each in TOOLS if each.domain != tool.domain]
    # Few are likelier than many: every schema takes about a hundred tokens.
    num_others = min(rng.randint(_FEWEST_OFFERED, _MOST_OFFERED) for _ in range(2)) - 1
    num_near = min(len(near), (num_others + 1) // 2)
    offered = [tool, *rng.sample(near, num_near), *rng.sample(far, num_others - num_near)]
    rng.shuffle(offered)
    return offered


def _draw_result(shape: ResultShape, rng: Random) -> tuple[object, dict[str, object]]:
    """A result of this shape, and its values by their own names, for the answer."""
    if isinstance(shape, str):
        return KINDS[shape].draw(rng), {}
    if isinstance(shape, list):
        # An answer is about the first one.
        drawn = [_draw_result(shape[0], rng) for _ in range(rng.randint(1, 2))]
        return [value for value, _ in drawn], drawn[0][1]
    result: dict[str, object] = {}
    leaves: dict[str, object] = {}
    for name, inner in shape.items():
        result[name], inner_leaves = _draw_result(inner, rng)
        leaves |= {name: result[name]} if isinstance(inner, str) else inner_leaves
    return result, leaves
