"""What the example scripts start, and when they start it again; the schedulers are played by small scripts."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ARGUMENTS = ["--config", "a config.yaml", "--output-dir", "runs/kd 7"]

TRAINER = r"""#!/bin/bash
# Says how it was started, and ends with the next of the exit codes.
place="$MASTER_ADDR:$MASTER_PORT $RANK of $WORLD_SIZE, local $LOCAL_RANK"
echo "$place, $OMP_NUM_THREADS threads: $(printf '[%s]' "$@")" >> "$FOLDER/started"
code=$(head -n 1 "$FOLDER/codes.$RANK")
sed -i 1d "$FOLDER/codes.$RANK"
exit "$code"
"""
SRUN = """#!/bin/bash
# Two tasks; the highest exit code of all.
[[ $1 == --cpus-per-task=4 ]] && shift
highest=0
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=0 "$@"
    code=$?
    ((code > highest)) && highest=$code
done
exit $highest
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf 'node-3\\nnode-4\\n'; else echo "$@" >> "$FOLDER/asked"; fi
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Scripts that play a scheduler, and what they have written down."""

    folder: Path

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def run(self, script: Path, codes: list[list[int]], **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script whose ranks end with these exit codes, start after start."""
        for rank, own in enumerate(codes):
            (self.folder / f"codes.{rank}").write_text("".join(f"{code}\n" for code in own))
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            [script, *ARGUMENTS],
            env={**environment, "PATH": path, "FOLDER": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run_slurm_job(self, codes: list[list[int]], *, restarts: int = 0) -> subprocess.CompletedProcess[str]:
        job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node-[3-4]", "SLURM_NTASKS": "2"}
        given = {**job, "SLURM_CPUS_PER_TASK": "4"}
        if restarts:
            given["SLURM_RESTART_COUNT"] = str(restarts)
        return self.run(EXAMPLES / "slurm" / "train.sbatch", codes, **given)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    for name, script in {"python": TRAINER, "srun": SRUN, "scontrol": SCONTROL, "sleep": "#!/bin/bash\n"}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    return Stage(folder=tmp_path)


def test_a_slurm_job_tells_each_process_its_rank_and_where_to_meet(stage: Stage) -> None:
    ended = stage.run_slurm_job([[0], [0]])

    arguments = "[-m][training.distill_kd][--config][a config.yaml][--output-dir][runs/kd 7]"
    assert (0, "") == (ended.returncode, ended.stderr)
    assert [f"node-3:23456 {rank} of 2, local 0, 4 threads: {arguments}" for rank in range(2)] == stage.lines(
        "started"
    )
    assert [] == stage.lines("asked")


@pytest.mark.parametrize("codes", [[75, 75], [137, 75], [75, 1], [139, 75]])
def test_a_slurm_job_that_was_stopped_or_lost_a_process_is_requeued(stage: Stage, codes: list[int]) -> None:
    ended = stage.run_slurm_job([[code] for code in codes], restarts=19)

    assert ["requeue 123456"] == stage.lines("asked")
    assert f"Exit code {max(codes)}: job 123456 is requeued" in ended.stderr


@pytest.mark.parametrize(
    "codes, restarts, said",
    [([2, 2], 0, "Exit code 2: starting again"), ([75, 75], 20, "Exit code 75 after 20 restarts (most_restarts)")],
    ids=["error", "too often"],
)
def test_a_slurm_job_that_will_not_get_further_is_given_up(
    stage: Stage, codes: list[int], restarts: int, said: str
) -> None:
    ended = stage.run_slurm_job([[code] for code in codes], restarts=restarts)

    assert max(codes) == ended.returncode
    assert said in ended.stderr
    assert [] == stage.lines("asked")


@pytest.mark.parametrize(
    "codes, expected, said",
    [
        ([75, 137, 0], 0, "Exit code 137: start 2 of at most 4 has ended"),
        ([75, 2, 0], 2, "Exit code 2: starting again"),
        ([75, 75, 75, 137, 0], 137, "That was the last start (MOST_STARTS)."),
    ],
    ids=["completes", "error", "too often"],
)
def test_a_host_of_an_elastic_run_is_started_again_while_that_may_help(
    stage: Stage, codes: list[int], expected: int, said: str
) -> None:
    given = {"ENDPOINT": "host-a:29500", "HOSTS": "1:3", "PROCESSES": "2", "MOST_STARTS": "4"}
    ended = stage.run(EXAMPLES / "elastic.sh", [codes], RANK="0", **given)

    assert expected == ended.returncode
    assert said in ended.stderr
    (started,) = {line.partition("threads: ")[2] for line in stage.lines("started")}
    assert started.startswith("[-m][crashproof.pytorch.torchrun][--nnodes][1:3][--nproc-per-node][2]")
    assert started.endswith("[-m][training.distill_kd][--config][a config.yaml][--output-dir][runs/kd 7]")


def test_a_host_of_an_elastic_run_must_know_where_to_meet(stage: Stage) -> None:
    ended = stage.run(EXAMPLES / "elastic.sh", [[]])

    assert "ENDPOINT" in ended.stderr
    assert [] == stage.lines("started")
