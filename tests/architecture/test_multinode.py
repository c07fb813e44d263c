"""The files for clusters stand in their document; their names and exit codes agree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from crashproof.pytorch.interrupts import EXIT_PREEMPTED

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCUMENT = EXAMPLES / "multinode.md"
SCRIPTS = ["elastic.sh", "slurm/train.sbatch"]
FILES = [*SCRIPTS, "kubernetes/job.yaml"]


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    found = yaml.safe_load_all((EXAMPLES / "kubernetes" / "job.yaml").read_text())
    return {each["kind"]: each for each in found}


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> Any:
    return objects["Job"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", FILES)
def test_each_file_stands_in_the_document(name: str) -> None:
    kind = "yaml" if name.endswith(".yaml") else "bash"

    assert f"]({name})" in DOCUMENT.read_text()
    assert f"```{kind}\n{(EXAMPLES / name).read_text()}```\n" in DOCUMENT.read_text()


def test_no_other_file_of_a_cluster_is_left_out() -> None:
    found = {
        path.relative_to(EXAMPLES).as_posix()
        for path in EXAMPLES.rglob("*")
        if path.suffix in (".sh", ".sbatch", ".yaml")
    }

    assert set(FILES) == found


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_is_one(name: str) -> None:
    path = EXAMPLES / name

    assert path.stat().st_mode & 0o111
    assert 0 == subprocess.run(["bash", "-n", path], check=False).returncode


def test_the_objects_are_valid_for_kubernetes(objects: dict[str, Any]) -> None:
    """Where the schemas are installed: they are 70 MB."""
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")

    for each in objects.values():
        schemas.validate(each, "1.31", strict=True)


def test_the_pods_have_the_names_that_they_meet_under(objects: dict[str, Any], pod: Any) -> None:
    job, service = objects["Job"], objects["Service"]
    name = job["metadata"]["name"]
    command = pod["containers"][0]["command"]

    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert ("None", "Indexed") == (service["spec"]["clusterIP"], job["spec"]["completionMode"])
    assert f"--master-addr={name}-0.{pod['subdomain']}" in command
    assert f"--nnodes={job['spec']['completions']}" in command
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert f"--nproc-per-node={pod['containers'][0]['resources']['limits']['nvidia.com/gpu']}" in command


def test_the_pods_have_what_the_command_reads_and_writes(objects: dict[str, Any], pod: Any) -> None:
    mounts = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    paths = [
        value.partition("=")[2]
        for value in pod["containers"][0]["command"]
        if value.startswith(("--config", "--out"))
    ]

    assert mounts.keys() == volumes.keys()
    assert [True, True] == [path.startswith((mounts["config"] + "/", mounts["runs"] + "/")) for path in paths]
    claim = objects["PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == volumes["runs"]["persistentVolumeClaim"]["claimName"]
    assert ["ReadWriteMany"] == claim["spec"]["accessModes"]


def test_the_job_reads_the_exit_codes_of_the_trainers(objects: dict[str, Any], pod: Any) -> None:
    rules = objects["Job"]["spec"]["podFailurePolicy"]["rules"]
    by_code = {
        code: rule["action"] for rule in rules if "onExitCodes" in rule for code in rule["onExitCodes"]["values"]
    }

    assert {2: "FailJob", EXIT_PREEMPTED: "Ignore"} == by_code
    assert {"In"} == {rule["onExitCodes"]["operator"] for rule in rules if "onExitCodes" in rule}
    assert {pod["containers"][0]["name"]} == {
        rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule
    }
    # Without it the policy is refused.
    assert "Never" == pod["restartPolicy"]
    command = pod["containers"][0]["command"]
    assert ["python", "-m", "crashproof.pytorch.torchrun"] == command[:3]
    assert "--max-restarts=0" in command


def test_the_trainers_are_given_less_time_than_their_pod(pod: Any) -> None:
    given = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}

    assert int(given["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]


def test_the_document_says_what_was_not_run() -> None:
    section = re.search(r"^## Kubernetes$(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)

    assert section is not None
    assert "It was not run" in section[1]
