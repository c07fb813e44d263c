from __future__ import annotations

from pathlib import Path

import pytest

from crashproof.pytorch.staging.free_memory import free_memory_bytes

MACHINE = {"proc/meminfo": "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  400 kB\n"}


def group(name: str, limit: str, used: str, stat: str = "anon 5\n") -> dict[str, str]:
    return {
        f"sys/fs/cgroup{name}/memory.max": f"{limit}\n",
        f"sys/fs/cgroup{name}/memory.current": f"{used}\n",
        f"sys/fs/cgroup{name}/memory.stat": stat,
    }


OWN = {"proc/self/cgroup": "0::/jobs/one\n"}


@pytest.mark.parametrize(
    "files, expected",
    [
        pytest.param(MACHINE, 400 << 10, id="without limits, the machine's"),
        pytest.param(MACHINE | group("", "100000", "40000"), 60_000, id="of a container"),
        pytest.param(MACHINE | OWN | group("/jobs/one", "9000", "4000"), 5_000, id="of its own group"),
        pytest.param(
            MACHINE | OWN | group("/jobs/one", "max", "4000") | group("/jobs", "9000", "8000"),
            1_000,
            id="of the group around it",
        ),
        pytest.param(MACHINE | group("", "max", "40000"), 400 << 10, id="a group without a limit"),
        pytest.param(
            MACHINE | group("", "100000", "90000", "anon 5\ninactive_file 70000\n"),
            80_000,
            id="pages of files give way",
        ),
        pytest.param(MACHINE | group("", "100000", "100500"), 0, id="more than the limit"),
        pytest.param({}, None, id="a system that does not tell"),
    ],
)
def test_free_memory_is_what_machine_and_groups_leave(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)

    assert expected == free_memory_bytes(tmp_path)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not tell")
def test_this_machine_has_memory() -> None:
    assert (free_memory_bytes() or 0) > 1 << 20
