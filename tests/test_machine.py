"""What memory a process may have: of the machine, and of the control groups it is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from volseg import machine

GIB = 2**30


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/slurm/job_1/step_0\n", {"slurm/job_1/memory.max": 8 * GIB, "slurm/job_1/memory.current": GIB}, 7),
        ("0::/\n", {"memory.max": 4 * GIB, "memory.current": GIB}, 3),
        ("0::/a\n", {"a/memory.max": "max", "a/memory.current": GIB}, 64),
        (
            "12:cpu:/x\n5:memory:/jobs/7\n0::/\n",
            {"memory/jobs/7/memory.limit_in_bytes": 6 * GIB, "memory/jobs/7/memory.usage_in_bytes": 2 * GIB},
            4,
        ),
        ("", {}, 64),
    ],
)
def test_the_tightest_control_group_counts(groups, files, expected, tmp_path: Path, monkeypatch) -> None:
    for name, value in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    lines = machine._lines

    def redirected(path: Path) -> list[str]:
        if path == Path("/proc/self/cgroup"):
            return groups.splitlines()
        if path == Path("/proc/meminfo"):
            return [f"MemAvailable: {64 * GIB // 1024} kB"]
        if path.is_relative_to("/sys/fs/cgroup"):
            return lines(tmp_path / path.relative_to("/sys/fs/cgroup"))
        return lines(path)

    monkeypatch.setattr(machine, "_lines", redirected)
    assert machine.available_memory() == expected * GIB


def test_this_process_has_memory() -> None:
    assert 0 < machine.resident_memory() <= machine.peak_memory() <= machine.physical_memory()
    assert 0 < machine.available_memory() <= machine.physical_memory()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.00 KiB"), (24.1 * 1024, "24.1 KiB"), (150 * 2**20, "150 MiB"),
        (3.216 * GIB, "3.22 GiB"), (2048 * GIB, "2048 GiB"),
    ],
)  # fmt: skip
def test_a_size_in_words_is_in_the_largest_unit_that_it_fills(count: float, text: str) -> None:
    assert machine.size_text(count) == text
