"""A SLURM cluster of two nodes on one machine, each node with a network, a name and processes of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from network_namespaces import Host, Network, two_hosts

PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    **dict.fromkeys(["sbatch", "scontrol", "scancel", "sinfo", "srun"], "slurm-client"),
}
"""What is needed, and Debian's package of each."""

CONFIG = """
ClusterName=test
SlurmctldHost=host-a
AuthType=auth/none
CredType=cred/none
# A requeued job waits until its old credentials have expired: two minutes by default.
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdTimeout=10
KillWait=10
GresTypes=gpu
NodeName=host-a,host-b CPUs=32 Gres=gpu:8
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

POLL_SECONDS = 0.2


def require_slurm() -> None:
    """Skip the test where SLURM is not installed."""
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        pytest.skip(f"SLURM is not installed (Debian: apt-get install {' '.join(missing)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the controller says of a job."""

    state: str
    reason: str
    restarts: int
    exit_code: int
    """The batch script's, or 128 and its signal's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmCluster:
    """Two nodes with 8 GPUs each, as far as the scheduler knows; the controller runs on the first."""

    network: Network
    environment: dict[str, str]
    daemons: list[subprocess.Popen[Any]]

    def submit(self, script: Path, arguments: Sequence[str], *options: str, output: Path) -> str:
        """Submit a job and return its number."""
        return self._run(["sbatch", "--parsable", f"--output={output}", *options, str(script), *arguments]).strip()

    def job(self, number: str) -> Job:
        """The job as it is now."""
        fields = dict(re.findall(r"(\w+)=(\S*)", self._run(["scontrol", "show", "job", "--oneliner", number])))
        code, _, signal = fields["ExitCode"].partition(":")
        return Job(
            state=fields["JobState"],
            reason=fields["Reason"],
            restarts=int(fields["Restarts"]),
            exit_code=128 + int(signal) if int(signal) else int(code),
        )

    def wait_for(self, number: str, *states: str, most_seconds: float = 150) -> Job:
        """Wait until the job is in one of the states."""
        job = self.job(number)
        deadline = time.monotonic() + most_seconds
        while job.state not in states:
            assert time.monotonic() < deadline, f"job {number} is still {job}"
            time.sleep(POLL_SECONDS)
            job = self.job(number)
        return job

    def cancel(self, number: str, *options: str) -> None:
        """Cancel a job, or send it a signal (`--signal=TERM`)."""
        self._run(["scancel", *options, number])

    def wait_for_nodes(self, *states: str, most_seconds: float = 60) -> None:
        """Wait until the nodes are in these states."""
        command = ["sinfo", "--noheader", "--Node", "--format=%T"]
        deadline = time.monotonic() + most_seconds
        while list(states) != (found := self._run(command).split()):
            assert time.monotonic() < deadline, f"the nodes are still {found}"
            time.sleep(POLL_SECONDS)

    def start_node(self, host: Host) -> None:
        """Start a node's daemon."""
        self._start(host, "slurmd", "-N", host.name)

    def _start(self, host: Host, *command: str) -> None:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.daemons.append(host.start([*command, "-D"], env=self.environment, **quiet))

    def _run(self, command: list[str]) -> str:
        return self.network.hosts[0].run(command, env=self.environment)


@contextmanager
def slurm_cluster(folder: Path, *, python_path: Path) -> Iterator[SlurmCluster]:
    """A cluster that has started, whose programs find modules in `python_path`; skips where there can be none."""
    require_slurm()
    (folder / "state").mkdir(parents=True)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=folder))
    for number in range(8):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    # Jobs get the environment of `sbatch`: the tests' own Python is their `python`.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    modules = os.pathsep.join(filter(None, [str(python_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "SLURM_CONF": str(config), "PATH": path, "PYTHONPATH": modules}
    daemons: list[subprocess.Popen[Any]] = []
    try:
        with two_hosts() as network:
            cluster = SlurmCluster(network=network, environment=environment, daemons=daemons)
            cluster._start(network.hosts[0], "slurmctld")
            for host in network.hosts:
                cluster.start_node(host)
            cluster.wait_for_nodes("idle", "idle")
            yield cluster
    finally:
        # They have died with their hosts.
        for daemon in daemons:
            daemon.wait(timeout=10)
