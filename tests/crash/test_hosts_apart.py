"""Two hosts whose link is cut, or one of whose ranks is stopped, hangs or lags: all end within the limit and say why.

Each case ends with the same command started again, and weights that are equal to those of the uninterrupted run to
the last bit. Run with `-s`, a case prints its seconds and exit codes.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from crash.two_host_runs import (
    LIMIT_SECONDS,
    SETTINGS,
    STEPS,
    Ended,
    code_of_rank,
    ends,
    start,
    wait_for_mark,
    weights,
    write_data,
)
from network_namespaces import Network, two_hosts

from crashproof import RunReader

EXCHANGES = """
import os, pathlib, sys
from crashproof.errors import RankLost
from crashproof.pytorch.ranks import join_ranks
try:
    with join_ranks(device_type="cpu", limit_seconds=2) as ranks:
        while True:
            ranks.all_gather(ranks.rank, "exchanging")
            pathlib.Path(os.environ["MARK"]).touch()
except RankLost as error:
    sys.stderr.write(f"{error}\\n")
    sys.exit(75)
"""

MOST_SECONDS = 70
"""The limit of 8, a roll call of 5, 10 to leave, and the slowness of a machine that does other things."""


@pytest.fixture
def network() -> Iterator[Network]:
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.jsonl")


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def uninterrupted(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    output_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    with two_hosts() as network:
        assert_complete(ends(start(network, arguments(data, output_dir, request.param)), since=time.monotonic()))
    return request.param, output_dir


def arguments(data: Path, output_dir: Path, strategy: str, *overrides: str) -> list[str]:
    given = [f"data.path={data}", *SETTINGS, f"train.strategy={strategy}", *overrides]
    return [*given, "--output-dir", str(output_dir)]


def assert_complete(ended: list[Ended]) -> None:
    assert [0, 0] == [each.code for each in ended], [each.said for each in ended]


def assert_same_end(reference: Path, output_dir: Path) -> None:
    expected, found = weights(reference), weights(output_dir)
    assert expected.keys() == found.keys()
    assert [] == [name for name in expected if not torch.equal(expected[name], found[name])]
    reader = RunReader.open(output_dir)
    assert list(range(1, STEPS + 1)) == [line.step for line in reader.history()]
    assert None is reader.session().replay_differed_at
    assert [] == reader.problems()


def report(case: str, ended: list[Ended], *, limit_seconds: int = LIMIT_SECONDS) -> None:
    seconds = ", ".join(f"{each.seconds:.1f} s" for each in ended)
    print(f"\n{case} (limit {limit_seconds} s): ended after {seconds}; exit codes {[each.code for each in ended]}")
    for each in ended:
        print("".join(f"    {line}\n" for line in each.said.splitlines() if "Lost" in line or "Rank " in line))


def test_after_a_cut_both_ranks_name_the_other_and_end(network: Network, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "MARK": str(mark)}
    place = {"MASTER_ADDR": "host-a", "MASTER_PORT": "29400", "WORLD_SIZE": "2"}
    ranks = [
        host.start(
            [sys.executable, "-c", EXCHANGES],
            env={**environment, **place, "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(network.hosts)
    ]

    wait_for_mark(mark, ranks)
    network.cut()
    ended = ends(ranks, since=time.monotonic())

    report("cut while exchanging", ended, limit_seconds=2)
    assert [75, 75] == [each.code for each in ended], [each.said for each in ended]
    assert re.search(r"Lost rank 1 \(host-b, pid \d+\) while exchanging .*: it gives no sign of life", ended[0].said)
    assert re.search(r"Lost rank 0 \(host-a, pid \d+\) while exchanging .* does not answer", ended[1].said)


@pytest.mark.long
@pytest.mark.parametrize(
    "moment, said",
    [
        ("1:0:joining", "while joining the other processes (limit 8 s)"),
        ("0:0:preparing", "while preparing data and models (limit 8 s)"),
        ("1:9:step", "while computing step 9 (limit 8 s)"),
        ("1:8:save", "(limit 8 s)"),
        ("0:0:student", "while gathering the student (limit 8 s)"),
    ],
    ids=["joining", "preparing", "step", "save", "student"],
)
def test_after_a_cut_all_ranks_end_within_the_limit(
    network: Network, data: Path, uninterrupted: tuple[str, Path], tmp_path: Path, moment: str, said: str
) -> None:
    strategy, reference = uninterrupted
    if strategy == "ddp" and moment.endswith("student"):
        pytest.skip("under DDP each rank has the whole student, and gathers nothing")
    output_dir, mark = tmp_path / "run", tmp_path / "mark"
    command = arguments(data, output_dir, strategy)

    hosts = start(network, command, RANKS_WAIT=moment, RANKS_MARK=str(mark))
    wait_for_mark(mark, hosts)
    network.cut()
    cut_at = time.monotonic()
    mark.unlink()
    ended = ends(hosts, since=cut_at)
    network.restore()
    resumed = ends(start(network, command), since=time.monotonic())

    report(f"{strategy}, cut while {moment.partition(':')[2]}", ended)
    assert [75, 75] == [code_of_rank(each) for each in ended], [each.said for each in ended]
    assert any(said in each.said for each in ended), [each.said for each in ended]
    assert all(each.said.count("Lost ") or "gives up" in each.said for each in ended), [each.said for each in ended]
    assert max(each.seconds for each in ended) < MOST_SECONDS
    assert_complete(resumed)
    assert_same_end(reference, output_dir)


@pytest.mark.long
@pytest.mark.parametrize(
    "moment, codes, said",
    [
        ("1:9:stopped", [75, -signal.SIGKILL], "is stopped (state T)"),
        ("1:9:locked", [75, 75], "Python's lock was not released"),
        ("1:9:asleep", [75, 75], "gives up after"),
        ("1:9:error", [75, 1], "it ended with KeyError"),
    ],
    ids=["stopped", "locked", "asleep", "error"],
)
def test_a_rank_that_stops_or_hangs_alone_on_its_host_ends_too(
    network: Network,
    data: Path,
    uninterrupted: tuple[str, Path],
    tmp_path: Path,
    moment: str,
    codes: list[int],
    said: str,
) -> None:
    strategy, reference = uninterrupted
    output_dir, mark = tmp_path / "run", tmp_path / "mark"
    command = arguments(data, output_dir, strategy)

    hosts = start(network, command, RANKS_KILL=moment, RANKS_MARK=str(mark))
    wait_for_mark(mark, hosts)
    ended = ends(hosts, since=time.monotonic())
    resumed = ends(start(network, command), since=time.monotonic())

    report(f"{strategy}, {moment.partition(':')[2]}", ended)
    assert codes == [code_of_rank(each) for each in ended], [each.said for each in ended]
    assert any(said in each.said for each in ended), [each.said for each in ended]
    assert max(each.seconds for each in ended) < MOST_SECONDS
    assert_complete(resumed)
    assert_same_end(reference, output_dir)


@pytest.mark.long
@pytest.mark.parametrize("is_stopped", [False, True], ids=["late", "stopped"])
def test_a_rank_that_is_slow_within_the_limit_is_waited_for(
    network: Network, data: Path, uninterrupted: tuple[str, Path], tmp_path: Path, is_stopped: bool
) -> None:
    strategy, reference = uninterrupted
    output_dir, mark = tmp_path / "run", tmp_path / "mark"
    # A loaded machine may take seconds of its own.
    command = arguments(data, output_dir, strategy, "train.limit_seconds=20")

    hosts = start(network, command, RANKS_WAIT="1:9:step", RANKS_MARK=str(mark))
    wait_for_mark(mark, hosts)
    ranks = network.hosts[1].processes({"RANK": "1"}) if is_stopped else []
    for rank in ranks:
        rank.suspend()
    time.sleep(12)
    for rank in ranks:
        rank.resume()
    mark.unlink()

    assert_complete(ends(hosts, since=time.monotonic()))
    assert_same_end(reference, output_dir)


@pytest.mark.long
def test_a_slow_link_is_no_lost_link(
    network: Network, data: Path, uninterrupted: tuple[str, Path], tmp_path: Path
) -> None:
    strategy, reference = uninterrupted
    output_dir = tmp_path / "run"
    network.limit_rate(kilobits_per_second=1000)

    begun_at = time.monotonic()
    ended = ends(start(network, arguments(data, output_dir, strategy)), since=begun_at, most_seconds=200)

    report(f"{strategy}, a link of 1 Mbit/s", ended)
    assert_complete(ended)
    assert_same_end(reference, output_dir)


@pytest.mark.long
def test_a_cut_at_any_moment_leaves_no_rank_waiting(
    network: Network, data: Path, uninterrupted: tuple[str, Path], tmp_path: Path
) -> None:
    """SEED=n repeats one, ROUNDS=n sets how many."""
    strategy, reference = uninterrupted
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"\nSEED={seed}")
    chance = random.Random(seed)
    for number in range(int(os.environ.get("ROUNDS", "4"))):
        output_dir = tmp_path / f"run_{number}"
        command = arguments(data, output_dir, strategy)
        delay_seconds, end = chance.uniform(0, 15), chance.randrange(2)

        hosts = start(network, command)
        wait_until(lambda: all(ranks_of(network)), "both hosts have a rank")
        time.sleep(delay_seconds)
        network.cut(end)
        cut_at = time.monotonic()
        wait_until(lambda: not any(ranks_of(network)), "no rank is left")
        seconds = time.monotonic() - cut_at
        network.restore(end)
        ended = ends(hosts, since=time.monotonic())

        print(f"{strategy}, cut at end {end} after {delay_seconds:.1f} s: no rank left after {seconds:.1f} s")
        report("the agents", ended)
        assert {75} >= {int(code) for each in ended for code in re.findall(r"exitcode  : (-?\d+)", each.said)}
        assert_complete(ends(start(network, command), since=time.monotonic()))
        assert_same_end(reference, output_dir)


def ranks_of(network: Network) -> list[list[psutil.Process]]:
    """The ranks of each host, and the processes that they have started."""
    return [host.processes({"LOCAL_RANK": "0"}) for host in network.hosts]


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, f"not within {MOST_SECONDS} s: {what}"
        time.sleep(0.1)


@pytest.mark.long
def test_a_cut_that_is_shorter_than_the_limit_is_survived(
    network: Network, data: Path, uninterrupted: tuple[str, Path], tmp_path: Path
) -> None:
    strategy, reference = uninterrupted
    output_dir, mark = tmp_path / "run", tmp_path / "mark"
    command = arguments(data, output_dir, strategy, "train.limit_seconds=40")

    hosts = start(network, command, RANKS_WAIT="1:9:step", RANKS_MARK=str(mark))
    wait_for_mark(mark, hosts)
    network.cut()
    mark.unlink()
    time.sleep(8)
    network.restore()

    assert_complete(ends(hosts, since=time.monotonic()))
    assert_same_end(reference, output_dir)
