"""Two ranks of which one was given something else: both refuse, before the first step, and say what and who."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agreeing_ranks import ENVIRONMENT, SETTINGS, Case, Files, Results, problems_with, run, show
from agreement_cases import (
    config_cases,
    data_cases,
    harmless_cases,
    logits_cases,
    model_cases,
    resume_cases,
    running_cases,
    start_cases,
)

ROOT = Path(__file__).parents[2]

OTHER_SAMPLES = ("samples", "took samples that are not in the order of the run")
OTHER_WEIGHTS = ("weights", "came to other weights than the others")


def problems_with_resume(files: Files, results: Results) -> list[str]:
    """What is wrong with the runs of `running_cases`: the second must end as the third."""
    (case, _), (_, again), _ = results
    broken, reference = (files.folder / name / "student_6" / "model.safetensors" for name in folders_of(case))
    is_same = broken.read_bytes() == reference.read_bytes()
    problems = [] if "Resuming at step 2 (checkpoint_2" in again[0]["said"] else ["it did not resume at step 2"]
    return problems if is_same else [*problems, "the weights are not those of the uninterrupted run"]


def folders_of(case: Case) -> tuple[str, str]:
    return case.folder, f"{case.folder}-reference"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def some(files: Files) -> Results:
    """Some of all cases, in one go."""
    by_name = {case.name: case for case in [*config_cases(), *start_cases(files), *data_cases(files)]}
    names = ["train.learning_rate", "train.steps", "an invalid value on rank 0", "a shuffled data file"]
    cases = [by_name[name] for name in names] + running_cases("fsdp", *OTHER_SAMPLES)
    results = run([*cases, running_cases("ddp", *OTHER_WEIGHTS)[0]], files)
    show(results)
    return results


def test_what_differs_on_one_rank_is_named_by_both_before_anything_is_trained(some: Results) -> None:
    assert [] == [problem for case, said in some[:4] for problem in problems_with(case, said)]


def test_a_rank_that_goes_astray_is_named_and_nothing_is_saved_of_it(some: Results, files: Files) -> None:
    assert [] == [problem for case, said in some[4:] for problem in problems_with(case, said)]
    assert [] == problems_with_resume(files, some[4:7])


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_that_can_differ_on_one_rank_is_named(tmp_path: Path, strategy: str) -> None:
    files = Files(tmp_path)
    refused = [*config_cases(), *start_cases(files), *data_cases(files), *model_cases(files), *logits_cases(files)]
    cases = [*refused, *resume_cases(files, strategy), *harmless_cases(files)]

    results = run(cases, files, f"train.strategy={strategy}")

    show(results)
    problems = [problem for case, said in results for problem in problems_with(case, said)]
    assert not problems, problems


@pytest.mark.long
@pytest.mark.parametrize(
    "strategy, astray, says", [("ddp", *OTHER_SAMPLES), ("fsdp", *OTHER_SAMPLES), ("ddp", *OTHER_WEIGHTS)]
)
def test_a_run_that_went_astray_resumes_before_that_and_ends_like_the_uninterrupted_one(
    tmp_path: Path, strategy: str, astray: str, says: str
) -> None:
    files = Files(tmp_path)

    results = run(running_cases(strategy, astray, says), files)

    show(results)
    assert [] == [problem for case, said in results for problem in problems_with(case, said)]
    assert [] == problems_with_resume(files, results)


def start_agent(number: int, port: int, source: Path, arguments: list[str]) -> subprocess.Popen[str]:
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number)]
    meeting = ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return subprocess.Popen(
        [*agent, *meeting, "-m", "training.distill_kd", *arguments],
        env={**ENVIRONMENT, "PYTHONPATH": f"{source}:{source.parent}"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "first, second, says",
    [
        ([], ["train.learning_rate=0.02"], "train.learning_rate: 0.002 on rank 0, 0.02 on rank 1"),
        ([], ["train.steps=0"], "Rank 1 failed while preparing to start: Config key train.steps"),
        (["train.steps=0"], [], "Rank 0 failed while preparing to start: Config key train.steps"),
        ([], ["code"], "crashproof/distillation/training/loop.py: "),
    ],
    ids=["key", "invalid", "invalid-on-the-first", "code"],
)
def test_two_agents_of_torchrun_end_soon_and_both_say_why(
    tmp_path: Path, first: list[str], second: list[str], says: str
) -> None:
    sources = [ROOT / "src", tmp_path / "other" / "src"]
    shutil.copytree(ROOT / "src", sources[1], ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "training", tmp_path / "other" / "training")
    if second == ["code"]:
        second = []
        with (sources[1] / "crashproof" / "distillation" / "training" / "loop.py").open("a") as file:
            file.write("# patched on this host\n")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    settings = [*SETTINGS, "--output-dir", str(tmp_path / "run")]

    begun_at = time.monotonic()
    agents = [
        start_agent(number, port, source, [*settings, *own])
        for number, (source, own) in enumerate(zip(sources, (first, second), strict=True))
    ]
    said = [agent.communicate(timeout=200)[1] for agent in agents]

    print(f"{says} | {time.monotonic() - begun_at:.0f} s")
    assert [1, 1] == [agent.returncode for agent in agents], said
    assert all(says.partition(": ")[2] in text for text in said), said
    assert any(says in text for text in said), said
    # The exit code of each worker, in torchrun's own summary.
    assert all(re.search(r"exitcode\s*:\s*2\b", text) for text in said), said
    assert not (tmp_path / "run").exists()
