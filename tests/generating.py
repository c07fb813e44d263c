"""Run `crashproof generate` in this process."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from crashproof.cli.app import app

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "CRASHPROOF_PROXY_MAY_SEE_KEYS")


def generate(
    folder: Path,
    base_url: str,
    *options: object,
    num_prompts: int = 40,
    model: str = "teacher",
    environment: dict[str, str | None] | None = None,
) -> Result:
    """Ask for the answers to some prompts; errors that end the job are raised."""
    prompts = folder / "P.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{number} + 1?"}) + "\n" for number in range(num_prompts)))
    words = ["--prompts", prompts, "--model", model, "--out", folder / "D.jsonl", "--base-url", base_url]
    return CliRunner().invoke(
        app,
        ["generate", *map(str, [*words, *options])],
        env={"OPENAI_API_KEY": None, "OPENAI_BASE_URL": None, **(environment or {})},
        catch_exceptions=False,
    )
