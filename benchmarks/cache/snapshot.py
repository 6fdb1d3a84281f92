"""How long a snapshot of large compile caches takes, and a second one with the difference: against ``find`` and a plain os.walk.

usage: python snapshot.py [--files N] [--folders N] [--rounds N] [--keep DIR] [-o FILE.json]

Makes a tree in Triton's and Inductor's layout for four ranks (default: 200,000 files in 17,000 directories) in a temporary directory, adds
a start's worth of new entries, and times each way in turn, in a process of its own, several rounds. The ratio is that of the fastest
rounds: other work on the machine only adds. Warm page cache throughout: what is compared is the work, not the disk.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.cache import diff, snapshot
from pytest_sglang.cache.locate import CachePlace

SUFFIXES = ("source", "ttir", "ttgir", "llir", "ptx", "cubin", "json")
MOST_TIMES_FIND = 2.5
MOST_MIB = 200
RANKS = 4
NEW_ENTRIES = 90
"""A warm start's new variants on one H200 were 63 entries."""


def key(text: str) -> str:
    """A Triton entry's directory name."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def entry(root: Path, name: str, number: int, settled: bool) -> int:
    """One Triton entry of ten bytes a file; its number of files."""
    folder = root / "triton" / str(number % RANKS) / key(f"{name}{number}")
    folder.mkdir(parents=True)
    for file in (*(f"{name}.{suffix}" for suffix in SUFFIXES), f"__grp__{name}.json"):
        descriptor = os.open(folder / file, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"0123456789")
        os.close(descriptor)
    if settled:
        long_ago = time.time() - 86_400
        os.utime(folder, (long_ago, long_ago))
    return len(SUFFIXES) + 1


def make(root: Path, files: int, folders: int) -> tuple[int, int]:
    """The tree: seven eighths of the directories are Triton entries, the rest Inductor's; (files, directories) really made."""
    entries = folders * 7 // 8
    made = sum(
        entry(root, f"triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_{number % 300}", number, True) for number in range(entries)
    )
    shards = [root / f"{chr(97 + n // 26 % 26)}{chr(97 + n % 26)}{n // 676}" for n in range(folders - entries - RANKS - 1)]
    for shard in shards:
        shard.mkdir()
    for number in range(files - made):
        name = "c" + key(f"code{number}")[:51].lower() + ".py"
        os.close(os.open(shards[number % len(shards)] / name, os.O_WRONLY | os.O_CREAT))
    return files, sum(len(inner) for _, inner, _ in os.walk(root)) + 1


def places(root: Path) -> tuple[CachePlace, ...]:
    """The tree as the two caches that it is."""
    return CachePlace("inductor", root, "benchmark", "TORCHINDUCTOR_CACHE_DIR"), CachePlace(
        "inductor_triton", root / "triton", "benchmark"
    )


def find(root: Path) -> int:
    """What a person would do: path, size and time of every file."""
    with tempfile.TemporaryFile() as listing:
        subprocess.run(["find", str(root), "-type", "f", "-printf", "%p %s %T@\n"], stdout=listing, check=True)
        listing.seek(0)
        return sum(1 for _ in listing)


def walk(root: Path) -> int:
    """What a script would do."""
    known = {}
    for folder, _, names in os.walk(root):
        for name in names:
            status = os.stat(os.path.join(folder, name))
            known[os.path.join(folder, name)] = status.st_size, status.st_mtime
    return len(known)


class Took(NamedTuple):
    """One round in a process of its own."""

    wall_s: float
    cpu_s: float


def timed(work: Callable[[], object]) -> Took:
    """Do it in a forked child, so that each way starts as a fresh process, as ``find`` does: the scheduler treats those alike."""
    began = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    _, _, used = os.wait4(child, 0)
    return Took(time.perf_counter() - began, used.ru_utime + used.ru_stime)


def peak_mib(root: Path) -> float:
    """Peak memory of a process that takes both snapshots and their difference."""
    done = subprocess.run([sys.executable, __file__, "--peak", str(root)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak(root: Path) -> None:
    """In the process of its own."""
    before = snapshot.take(places(root))
    after = snapshot.take(places(root), before)
    diff.added(before, after)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(root: Path, files: int, folders: int, rounds: int) -> dict[str, object]:
    """All ways on one tree."""
    made_files, made_folders = make(root, files, folders)
    before = snapshot.take(places(root))
    for number in range(NEW_ENTRIES):
        made_files += entry(root, f"triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_{number % 4}", 10**6 + number, False)
        made_folders += 1
    counted = find(root)
    found = diff.added(before, snapshot.take(places(root), before))
    fresh = diff.added(before, snapshot.take(places(root)))
    same = (found.files, found.variants, found.new_kernels) == (fresh.files, fresh.variants, fresh.new_kernels)
    if counted != made_files or found.variants != NEW_ENTRIES or not same:
        raise SystemExit(f"wrong result: {counted} files of {made_files}, {found.variants} new entries of {NEW_ENTRIES}")

    def again() -> None:
        diff.added(before, snapshot.take(places(root), before))

    def full() -> None:
        diff.added(before, snapshot.take(places(root)))

    ways: dict[str, Callable[[], object]] = {
        "find -printf": lambda: os.execvp("find", ["find", str(root), "-type", "f", "-fprintf", "/dev/null", "%p %s %T@\n"]),
        "os.walk + os.stat": lambda: walk(root),
        "snapshot and diff": full,
        "second snapshot and diff": again,
    }
    rounds_of: dict[str, list[Took]] = {name: [] for name in ways}
    for _ in range(rounds):  # in turn, so that a busy moment of the machine strikes all of them
        for name, work in ways.items():
            rounds_of[name].append(timed(work))
    times = {
        name: {
            "fastest_s": min(each.wall_s for each in took),
            "median_s": statistics.median(each.wall_s for each in took),
            "cpu_s": statistics.median(each.cpu_s for each in took),
        }
        for name, took in rounds_of.items()
    }
    base = times["find -printf"]["fastest_s"]
    return {
        "files": made_files,
        "directories": made_folders,
        "rounds": rounds,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "ways": {name: {**each, "times_find": each["fastest_s"] / base} for name, each in times.items()},
        "peak_mib": peak_mib(root),
        "limits": {"times_find": MOST_TIMES_FIND, "peak_mib": MOST_MIB},
    }


def main() -> int:
    """Exit code 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--folders", type=int, default=17_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=None)
    parser.add_argument("--peak", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak is not None:
        peak(arguments.peak)
        return 0
    with tempfile.TemporaryDirectory(prefix="pytest-sglang-bench-") as scratch:
        found = measure(Path(scratch), arguments.files, arguments.folders, arguments.rounds)
    ways: dict[str, dict[str, float]] = found["ways"]  # type: ignore[assignment]
    print(f"{found['files']:,} files in {found['directories']:,} directories, {found['rounds']} rounds: fastest, median, CPU time")
    for name, each in ways.items():
        print(
            f"  {name:<26}{each['fastest_s']:6.2f} s {each['median_s']:6.2f} s {each['cpu_s']:6.2f} s CPU  {each['times_find']:5.2f} x find"
        )
    print(f"  peak memory               {found['peak_mib']:7.0f} MiB")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    kept = ways["snapshot and diff"]["times_find"] <= MOST_TIMES_FIND and float(str(found["peak_mib"])) <= MOST_MIB
    print("within the limits" if kept else f"NOT within {MOST_TIMES_FIND} x find and {MOST_MIB} MiB")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
