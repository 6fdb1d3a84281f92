"""What is in the caches, whether it is whole, what is of no use: on real entries of Triton 3.6.0, and on entries that are spoilt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cache_trees import age, triton_entry, write

from pytest_sglang.cache import contents, elf, integrity, snapshot
from pytest_sglang.cache.integrity import Problem, Running
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.snapshot import Snapshot

NAME = "triton_poi_fused_add_0"


def taken(*roots: Path, kind: str = "triton") -> Snapshot:
    return snapshot.take([CachePlace(kind, root, "test", "TRITON_CACHE_DIR") for root in roots])


def entry_of(root: Path, arch: int, warps: int) -> Path:
    for path in root.glob(f"*/{NAME}.json"):
        told = json.loads(path.read_text())
        if (told["target"]["arch"], told["num_warps"]) == (arch, warps):
            return path.parent
    raise LookupError((arch, warps))


def problems(root: Path) -> list[Problem]:
    return integrity.problems(taken(root))


# --- what is in it -----------------------------------------------------------------------------------------------------------


def test_kernels_are_read_from_real_metadata(real_triton: Path) -> None:
    found = list(contents.kernels(taken(real_triton)))
    assert {(each.name, each.arch, each.triton, each.ptx, each.warps, each.stages) for each in found} == {
        (NAME, "sm_86", "3.6.0", "8.7", 4, 3),
        (NAME, "sm_86", "3.6.0", "8.7", 8, 3),
        (NAME, "sm_90", "3.6.0", "8.7", 8, 2),
    }
    assert all(each.bytes > 7000 for each in found)
    ampere, hopper = contents.grouped(found)
    assert (ampere.arch, ampere.entries, ampere.warps, ampere.stages) == ("sm_86", 2, (4, 8), (3,))
    assert (hopper.arch, hopper.entries, hopper.warps, hopper.stages) == ("sm_90", 1, (8,), (2,))


def test_an_assembler_that_names_itself_is_told(real_triton: Path) -> None:
    cubin = entry_of(real_triton, 90, 8) / f"{NAME}.cubin"
    cubin.write_bytes(cubin.read_bytes() + b"\0Cuda compilation tools, release 13.0, V13.0.88\0")
    assert {each.ptxas for each in contents.kernels(taken(real_triton))} == {None, "13.0.88"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"target": 5, "num_warps": true}', '{"target": {"arch": "gfx942"}}'])
def test_metadata_that_tell_nothing_are_no_error(tmp_path: Path, text: str) -> None:
    folder = triton_entry(tmp_path, "k")
    (folder / "k.json").write_text(text)
    [kernel] = contents.kernels(taken(tmp_path))
    assert (kernel.name, kernel.triton, kernel.warps) == ("k", None, None)
    assert kernel.arch == ("gfx942" if "gfx" in text else None)


def test_what_was_autotuned_for_which_card_is_told(tmp_path: Path) -> None:
    text = json.dumps({"system": {"device": {"name": "NVIDIA H200"}, "version": {"cuda": "13.0"}}, "cache": {"a": 1, "b": 2}})
    write(tmp_path / "cache" / ("0" * 64)).write_text(text)
    write(tmp_path / "cache" / ("1" * 64)).write_text("[]")
    write(tmp_path / "cache" / ("2" * 64)).write_text('{"system": 1, "cache": 2}')
    found = contents.systems(taken(tmp_path, kind="inductor"))
    assert {(each.gpu, each.cuda, each.choices) for each in found} == {("NVIDIA H200", "13.0", 2), (None, None, 0)}


def test_reading_leaves_no_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "x", 5)
    age([path], time.time() - 1000)
    before = path.stat().st_atime_ns
    assert len(contents.read(str(path))) == 5
    assert path.stat().st_atime_ns == before


def test_another_users_file_is_read_with_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError(1, "Operation not permitted")
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    assert contents.read(str(write(tmp_path / "x", 5))) == b"\0" * 5


# --- is it whole -------------------------------------------------------------------------------------------------------------


def test_real_entries_are_whole(real_triton: Path) -> None:
    assert problems(real_triton) == []


def test_a_real_cubin_that_is_cut_off_anywhere_is_found(real_triton: Path) -> None:
    for cubin in real_triton.glob("*/*.cubin"):
        whole = cubin.read_bytes()
        assert elf.broken_file(str(cubin)) is None
        for length in range(len(whole)):
            assert elf.broken(length, lambda at, size, cut=whole[:length]: cut[at : at + size]) is not None  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"\x7fEL", "it is cut off"),
        (b"PK" + b"x" * 100, "it has no ELF header"),
        (b"x", "it has no ELF header"),
    ],
)
def test_what_is_no_elf_file(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "k.cubin"
    path.write_bytes(data)
    assert elf.broken_file(str(path)) == said


def test_pythons_own_library_is_whole() -> None:
    libraries = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".so")]
    assert all(elf.broken_file(path) is None for path in set(libraries) if Path(path).exists())


@pytest.mark.parametrize("cut", [0, 700])
def test_a_broken_cubin_is_named(real_triton: Path, cut: int) -> None:
    cubin = entry_of(real_triton, 90, 8) / f"{NAME}.cubin"
    cubin.write_bytes(cubin.read_bytes()[:cut])
    [problem] = problems(real_triton)
    assert (problem.kind, problem.path) == ("cache-broken", str(cubin))
    assert problem.detail.startswith(f"{NAME}: it is {'cut off' if cut else 'empty'}")


@pytest.mark.parametrize("name", [f"{NAME}.json", f"__grp__{NAME}.json"])
@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_json_that_is_none_is_named(real_triton: Path, name: str, text: str) -> None:
    path = entry_of(real_triton, 90, 8) / name
    path.write_text(text)
    [problem] = problems(real_triton)
    assert (problem.kind, problem.path) == ("cache-broken", str(path))
    assert "is no JSON: the start fails" in problem.detail or "are no JSON: the start fails" in problem.detail


@pytest.mark.parametrize(("name", "what"), [("cubin", "the start fails"), ("ttir", "the kernel is compiled again")])
def test_a_missing_child_is_named(real_triton: Path, name: str, what: str) -> None:
    entry = entry_of(real_triton, 86, 4)
    (entry / f"{NAME}.{name}").unlink()
    [problem] = problems(real_triton)
    assert (problem.kind, problem.path) == ("cache-incomplete", str(entry))
    assert problem.detail == f"{NAME}: {NAME}.{name} is missing: {what}"


def test_a_moved_cache_is_broken(real_triton: Path, tmp_path: Path) -> None:
    real_triton.rename(tmp_path / "moved")
    found = problems(tmp_path / "moved")
    assert [each.kind for each in found] == ["cache-moved"] * 3
    assert f"points to {real_triton}/" in found[0].detail
    assert found[0].detail.endswith("the kernel is compiled again")


def test_a_copied_cache_uses_the_files_of_the_old_place(real_triton: Path, tmp_path: Path) -> None:
    shutil.copytree(real_triton, tmp_path / "copy")
    assert problems(real_triton) == []
    assert {each.detail.rpartition(": ")[2] for each in problems(tmp_path / "copy")} == {"the files of the old place are used"}


def test_a_cache_behind_a_link_is_whole(real_triton: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(real_triton)
    assert problems(tmp_path / "link") == []


def test_leftovers_are_told_when_nobody_writes_any_more(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    alive, dead = os.getpid(), ended.pid
    for name in (f"tmp.pid_{dead}_ab/k.cubin", f"tmp.pid_{alive}_cd/k.cubin", f"ab/.{dead}.140.tmp", "ef/.staging-1/x", "ef/x.tmp"):
        write(tmp_path / name)
    age([tmp_path / "ef/.staging-1/x"], time.time() - 3600)
    half = triton_entry(tmp_path, "half")
    (half / "__grp__half.json").unlink()
    age(half.iterdir(), time.time() - 3600)
    assert {(each.kind, each.path.removeprefix(f"{tmp_path}/")) for each in problems(tmp_path)} == {
        ("cache-leftover", f"tmp.pid_{dead}_ab/k.cubin"),
        ("cache-leftover", f"ab/.{dead}.140.tmp"),
        ("cache-leftover", "ef/.staging-1/x"),
        ("cache-leftover", half.name),
    }


def test_libraries_of_other_caches_are_looked_at(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a" / "good.so"), write(tmp_path / "b" / "bad.so")
    shutil.copy(sys.executable, good)
    bad.write_bytes(good.read_bytes()[:5000])
    [problem] = integrity.problems(taken(tmp_path, kind="tvm_ffi"))
    assert (problem.kind, problem.path) == ("cache-broken", str(bad))


def test_a_sample_reads_a_part(real_triton: Path) -> None:
    for cubin in real_triton.glob("*/*.cubin"):
        cubin.write_bytes(b"")
    assert len(integrity.problems(taken(real_triton), sample=1)) == 1
    assert len(integrity.problems(taken(real_triton), sample=100)) == 3


# --- what is of no use -------------------------------------------------------------------------------------------------------


def test_entries_of_other_cards_and_versions_are_stale(real_triton: Path) -> None:
    taken_now = taken(real_triton)
    found = list(contents.kernels(taken_now))
    assert integrity.stale(taken_now, found, Running()) == []
    assert integrity.stale(taken_now, found, Running(triton="3.6.0", archs=frozenset({"sm_86", "sm_90"}))) == []
    [hopper] = integrity.stale(taken_now, found, Running(triton="3.6.0", archs=frozenset({"sm_86"})))
    assert hopper.path == str(entry_of(real_triton, 90, 8))
    assert hopper.detail == f"{NAME}: made by sm_90; Triton 3.6.0, sm_86 runs"
    all_three = integrity.stale(taken_now, found, Running(triton="3.7.0"))
    assert sum(each.bytes for each in all_three) == sum(each.bytes for each in found)


def test_graphs_of_before_the_running_torch_are_stale(tmp_path: Path) -> None:
    old, new = write(tmp_path / "ab" / "old", 10), write(tmp_path / "ab" / "new", 10)
    age([old], 1000.0)
    age([new], 3000.0)
    found = integrity.stale(taken(tmp_path, kind="fxgraph"), [], Running(torch="2.11.0", torch_since=2000.0))
    assert [(each.path, each.detail) for each in found] == [(str(old), "a graph of before torch 2.11.0 was installed")]


def test_copies_of_an_entry_are_counted_once(real_triton: Path, tmp_path: Path) -> None:
    other = tmp_path / "inductor" / "0"
    shutil.copytree(entry_of(real_triton, 90, 8), other / entry_of(real_triton, 90, 8).name)
    found = list(contents.kernels(taken(real_triton, tmp_path / "inductor")))
    [problem] = integrity.duplicates(found)
    assert problem.detail == f"{NAME}: stored 2 times, again in {other}"
    assert problem.bytes == found[-1].bytes


# --- under a server that writes ----------------------------------------------------------------------------------------------


def test_a_cache_that_changes_under_the_look_is_no_error(tmp_path: Path) -> None:
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 1) % 50
            shutil.rmtree(triton_entry(tmp_path / "t", f"k{number}", number), ignore_errors=True)

    for number in range(100, 130):
        triton_entry(tmp_path / "t", "steady", number)
    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(15):
            now = taken(tmp_path / "t")
            found = list(contents.kernels(now))
            assert sum(each.name == "steady" for each in found) == 30
            integrity.problems(now)
            integrity.duplicates(found)
    finally:
        stop.set()
        worker.join()
