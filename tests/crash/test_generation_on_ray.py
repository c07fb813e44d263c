"""A job on a Ray cluster whose askers, nodes and drivers are killed, whose teacher is away, and which is full."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from crash.generation_job import GenerationProcess, settled
from ray_clusters import RayCluster, title_of, wait_until
from response_stores import SqliteFixture

from crashproof.teacher.client.request_builder import RequestForm
from crashproof.teacher.jobs.job import GenerationJob
from crashproof.testing import TeacherServer
from crashproof.testing.teacher_server import request_hash

NUM_PROMPTS = 200


@dataclass(frozen=True, kw_only=True)
class JobOnRay(GenerationProcess):
    """A job that asks from a cluster."""

    address: str

    def command(self, *more: str) -> list[str]:
        return ["env", f"RAY_ADDRESS={self.address}", *super().command("--engine", "ray", *more)]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command("--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@dataclass(kw_only=True)
class Scene:
    """A cluster, a teacher, a store, and a job that is begun as often as it was killed."""

    folder: Path
    cluster: RayCluster
    server: TeacherServer
    stores: SqliteFixture
    num_prompts: int = NUM_PROMPTS
    peaks: Counter[str] = field(default_factory=Counter)
    """The most memory that each process had for itself, in bytes."""

    def job(self, name: str = "D.jsonl", *options: str) -> JobOnRay:
        prompts = self.folder / "P.jsonl"
        if not prompts.exists():
            with prompts.open("w") as file:
                file.writelines(json.dumps({"prompt": f"Question {n}"}) + "\n" for n in range(self.num_prompts))
        return JobOnRay(
            prompts=prompts,
            out=self.folder / name,
            base_url=self.server.base_url,
            options=("--store", self.stores.url, *options),
            address=self.cluster.address,
        )

    def prove(self, what: str, codes: list[int], job: JobOnRay, *, most_twice: int = 0) -> None:
        """All is answered, once, but for what was in doubt."""
        counts = settled(self.server)
        form = RequestForm(base_url=self.server.base_url, model="teacher", parameters={})
        questions = GenerationJob(prompts=job.prompts, out=job.out, form=form).questions()
        lost = self.stores.execute("SELECT key FROM crashproof_requests WHERE state = 'lost'")
        in_doubt = Counter(key for (key,) in lost)
        ((num_kept,),) = self.stores.execute("SELECT count(*) FROM crashproof_answers")
        twice = sum(
            max(0, counts.by_prompt[request_hash(each.request.body)] - 1 - in_doubt[each.request.key])
            for each in questions
        )
        written = len(job.out.read_bytes().splitlines())
        peaks = {name: f"{peak / 1e6:.0f} MB" for name, peak in sorted(self.peaks.items())}
        print(
            f"{what}: {written} of {self.num_prompts} answered, {twice} paid twice beyond what was in doubt "
            f"({in_doubt.total()}), peak memory {peaks}, exit codes {codes}"
        )
        assert (self.num_prompts, self.num_prompts, most_twice) == (written, num_kept, twice)
        assert [[], []] == [job.problems(), self.stores.open().problems()]

    @contextmanager
    def memory_watched(self, process: subprocess.Popen[str]) -> Iterator[None]:
        over = threading.Event()
        watching = threading.Thread(target=self._watch_memory, args=(process.pid, over))
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()

    def _watch_memory(self, pid: int, over: threading.Event) -> None:
        while not over.wait(0.5):
            for name, process in self._processes(pid):
                try:
                    self.peaks[name] = max(self.peaks[name], process.memory_full_info().uss)
                except psutil.Error:
                    continue

    def _processes(self, pid: int) -> Iterator[tuple[str, psutil.Process]]:
        yield "job", psutil.Process(pid)
        yield from (("driver", driver) for driver in drivers_of(pid))
        yield from (("asker", asker) for asker in self.cluster.askers())


def drivers_of(pid: int) -> list[psutil.Process]:
    """The process in which Ray lives, of a job."""
    try:
        children = psutil.Process(pid).children()
    except psutil.Error:
        return []
    return [child for child in children if "ray_cluster.driver" in title_of(child)]


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    with RayCluster() as cluster:
        cluster.add_node()
        cluster.add_node()
        yield cluster


@pytest.fixture
def scene(tmp_path: Path, cluster: RayCluster) -> Iterator[Scene]:
    stores = SqliteFixture(tmp_path / "store")
    with TeacherServer(latency_seconds=0.3) as server:
        yield Scene(folder=tmp_path, cluster=cluster, server=server, stores=stores)
    stores.close()


def kill_asker(scene: Scene, _: subprocess.Popen[str]) -> None:
    scene.cluster.askers()[0].kill()


def kill_node(scene: Scene, _: subprocess.Popen[str]) -> None:
    scene.cluster.kill_node(1)


def kill_driver(_: Scene, process: subprocess.Popen[str]) -> None:
    for driver in drivers_of(process.pid):
        driver.kill()


def kill_job(_: Scene, process: subprocess.Popen[str]) -> None:
    process.kill()


def kill_job_and_driver(scene: Scene, process: subprocess.Popen[str]) -> None:
    drivers = drivers_of(process.pid)
    process.kill()
    for driver in drivers:
        driver.kill()


def signal_job(number: signal.Signals) -> Callable[[Scene, subprocess.Popen[str]], None]:
    return lambda _, process: process.send_signal(number)


KILLS: dict[str, tuple[Callable[[Scene, subprocess.Popen[str]], None], int]] = {
    "an asker is killed": (kill_asker, 0),
    "a node is killed": (kill_node, 0),
    "the driver is killed": (kill_driver, 2),
    "the job is killed": (kill_job, -signal.SIGKILL),
    "the job and its driver are killed": (kill_job_and_driver, -signal.SIGKILL),
    "the job gets SIGTERM": (signal_job(signal.SIGTERM), 75),
    "the job gets SIGINT": (signal_job(signal.SIGINT), 75),
    "the job gets SIGHUP": (signal_job(signal.SIGHUP), 75),
}
LOSE_NOTHING = frozenset(KILLS) - {
    "an asker is killed",
    "a node is killed",
    "the driver is killed",
    "the job and its driver are killed",
}


def prove_kill(scene: Scene, what: str) -> None:
    kill, code = KILLS[what]
    job = scene.job()
    with job.start() as process, scene.memory_watched(process):
        wait_until(lambda: scene.server.counts.answers_computed >= NUM_PROMPTS // 4)
        kill(scene, process)
        out, said = process.communicate(timeout=200)
    codes = [process.returncode]
    assert code == process.returncode, said
    assert "Traceback" not in said
    assert "(raylet)" not in out + said
    if process.returncode == 0:
        assert NUM_PROMPTS == json.loads(out)["answers_written"]
    while codes[-1]:
        assert not job.out.exists()
        begun = time.monotonic()
        job.run()
        codes.append(0)
        print(f"the next start took {time.monotonic() - begun:.1f} s")
    scene.prove(what, codes, job)
    if what in LOSE_NOTHING:
        assert [] == scene.stores.execute("SELECT key FROM crashproof_requests WHERE state = 'lost'")


@pytest.mark.long
@pytest.mark.parametrize("what", KILLS)
def test_whatever_is_killed_all_is_answered_and_paid_once(scene: Scene, what: str) -> None:
    prove_kill(scene, what)


@pytest.mark.long
def test_two_jobs_on_one_cluster_ask_at_the_same_time(scene: Scene) -> None:
    jobs = [scene.job("A.jsonl"), scene.job("B.jsonl")]
    processes = [job.start() for job in jobs]
    for process in processes:
        out, said = process.communicate(timeout=200)
        assert 0 == process.returncode, said
        assert NUM_PROMPTS == json.loads(out)["answers_written"]

    scene.prove("two jobs", [process.returncode for process in processes], jobs[0])
    assert jobs[0].out.read_bytes() == jobs[1].out.read_bytes()


HOLD_ALL_CPUS = """
import sys, ray
ray.init(log_to_driver=False)
holders = [ray.remote(num_cpus=1)(type("Holder", (), {"is_there": lambda self: True})).remote() for _ in range(2)]
ray.get([holder.is_there.remote() for holder in holders])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.long
def test_without_a_free_cpu_it_says_so_and_waits(scene: Scene) -> None:
    job = scene.job()
    environment = {**os.environ, "RAY_ADDRESS": scene.cluster.address}
    command = [sys.executable, "-c", HOLD_ALL_CPUS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert b"held\n" == holder.stdout.readline()
        process = job.start()
        assert process.stderr is not None
        first = process.stderr.readline()
        holder.stdin.close()
    _, said = process.communicate(timeout=200)

    assert (
        "Nothing is asked yet: waiting for a free CPU, since all 2 of the Ray cluster are reserved by others.\n"
        == first
    )
    assert 0 == process.returncode, said
    scene.prove("no free CPU", [process.returncode], job)


@pytest.mark.long
def test_a_node_that_joins_later_asks_too(scene: Scene) -> None:
    scene.num_prompts = 1_000
    job = scene.job()
    process = job.start()
    wait_until(lambda: scene.server.counts.answers_computed >= 20)
    before = len(scene.cluster.askers())
    scene.cluster.add_node()
    wait_until(lambda: len(scene.cluster.askers()) > before)
    _, said = process.communicate(timeout=200)

    assert 0 == process.returncode, said
    scene.prove("a node joins", [process.returncode], job)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ray", "local"])
def test_a_teacher_that_is_away_for_a_minute_answers_everything_afterwards(scene: Scene, engine: str) -> None:
    scene.num_prompts = 400
    with TeacherServer() as unused:
        port = int(unused.base_url.split(":")[-1].split("/")[0])
    first = TeacherServer(latency_seconds=0.3, port=port)
    first.__enter__()
    scene.server = first
    job = scene.job()
    command = job.command("--json") if engine == "ray" else GenerationProcess.command(job, "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: first.counts.answers_computed >= 100)
    first.__exit__()
    time.sleep(60)
    with TeacherServer(latency_seconds=0.3, port=port):
        out, said = process.communicate(timeout=200)

    print(f"away for 60 s, {engine}: exit code {process.returncode}, {said}")
    assert 0 == process.returncode, said
    assert (400, 0) == tuple(json.loads(out)[name] for name in ("answers_written", "failed"))


@pytest.mark.long
@pytest.mark.parametrize("options", [("--attempts", "2"), ()], ids=["two attempts", "the usual attempts"])
def test_a_teacher_that_refuses_connections_ends_the_job(scene: Scene, options: tuple[str, ...]) -> None:
    job = scene.job("D.jsonl", *options, "--base-url", "http://127.0.0.1:9/v1")
    begun = time.monotonic()
    said = job.run(exit_code=2)

    print(f"refused: exit code 2 after {time.monotonic() - begun:.1f} s: {said}")
    assert f"no response after {'2' if options else '8'} attempts" in said
    assert not job.out.exists()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path: Path, cluster: RayCluster) -> None:
    peaks = []
    for num_prompts in (int(os.environ.get("PROMPTS", "50000")) * factor for factor in (1, 2)):
        folder = tmp_path / str(num_prompts)
        folder.mkdir()
        stores = SqliteFixture(folder / "store")
        with TeacherServer(answer=lambda _: "yes") as server:
            scene = Scene(folder=folder, cluster=cluster, server=server, stores=stores, num_prompts=num_prompts)
            job = scene.job("D.jsonl", "--concurrency", "64")
            begun = time.monotonic()
            with job.start() as process, scene.memory_watched(process):
                _, said = process.communicate(timeout=3000)
            assert 0 == process.returncode, said
            scene.prove(f"{num_prompts} prompts in {time.monotonic() - begun:.0f} s", [0], job)
        stores.close()
        peaks.append(scene.peaks)

    for name in ("driver", "asker"):
        assert peaks[1][name] < 1.15 * peaks[0][name]
