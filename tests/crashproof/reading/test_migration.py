"""Moving in, as the guide tells it: its Python and its commands, in order, on a folder that other code has filled."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from foreign_checkpoints import write_hugging_face

from crashproof import RunReader, get_recovery_checkpoint

torch = pytest.importorskip("torch")

GUIDE = Path(__file__).parents[3] / "docs" / "TRAINING_RECOVERY_GUIDE.md"
SECTION = re.compile(r"^## Moving in\n(?P<content>.*?)^## ", re.MULTILINE | re.DOTALL)
FENCE = re.compile(
    r"^```(?P<info>python|python continued|console|bash)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL
)


def fences() -> list[tuple[str, str]]:
    section = SECTION.search(GUIDE.read_text())
    assert section is not None
    return [(fence["info"].split()[0], fence["content"]) for fence in FENCE.finditer(section["content"])]


def commands(console: str) -> Iterator[tuple[str, str]]:
    """Each command with what it prints."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def printed(command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
    )
    return done.stdout + done.stderr


def is_as_told(told: str, output: str) -> bool:
    """`…` stands for whatever differs from machine to machine."""
    return re.fullmatch(re.escape(told).replace("…", r"\S+"), output) is not None


def test_a_run_is_migrated_as_the_guide_describes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_hugging_face(Path("runs/trainer"), 500)
    (write_hugging_face(Path("runs/trainer"), 1000, num_shards=2) / "model-00002-of-00002.safetensors").unlink()
    module = ModuleType("guide")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    num_commands = 0
    for kind, content in fences():
        if kind == "python":
            exec(compile(content, str(GUIDE), "exec"), module.__dict__)
            continue
        for command, told in commands(content):
            if command.startswith("jq ") and shutil.which("jq") is None:
                continue
            output = printed(command)
            assert is_as_told(told, output), f"$ {command}\n{output}"
            num_commands += 1

    assert num_commands >= 6
    assert (
        tmp_path / "runs/old/checkpoint_100.pt" == (get_recovery_checkpoint("runs/old", module.config) or [None])[0]
    )
    assert 5 == len(list(Path("shelf").iterdir()))
    history = [line.step for line in RunReader.open(Path("runs/old")).history()]
    assert list(range(31, 101)) == history
    assert not Path("runs/old/progress/archive").exists()


def renew(module: ModuleType) -> None:
    module.model = torch.nn.Linear(4, 1)
    module.optimizer = torch.optim.AdamW(module.model.parameters(), lr=0.01)


def test_a_migrated_model_equals_that_of_the_uninterrupted_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("guide")
    for kind, content in fences():
        if kind == "python":
            if "torch.load(" in content:
                # As a new process would begin: with nothing of what the old one knew.
                renew(module)
            torch.manual_seed(7)
            exec(compile(content, str(GUIDE), "exec"), module.__dict__)
        elif "adopt runs/old" in content and "forget" not in content:
            printed("crashproof adopt runs/old --samples-per-step 8")
    moved_in = [weight.detach().clone() for weight in module.model.parameters()]
    torch.manual_seed(7)
    renew(module)
    for step in range(1, 101):
        module.train_step(step)

    assert all(torch.equal(one, other) for one, other in zip(moved_in, module.model.parameters(), strict=True))
