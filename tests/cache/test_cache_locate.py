"""Where the caches are, by version, environment and process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_sglang.cache import locate
from pytest_sglang.cache.locate import CachePlace


def where(version: str | None = "0.5.11", user: str = "sg", cwd: str = "/", **environ: str) -> dict[str, str]:
    places = locate.locate(version=version, environ=environ, home=Path("/home/sg"), tmpdir=Path("/tmp"), user=user, cwd=Path(cwd))
    return {place.kind: str(place.path) for place in places}


def test_before_0_5_18_inductor_is_in_the_temporary_directory_and_triton_at_home() -> None:
    found = where("0.5.11")
    assert found["inductor"] == "/tmp/torchinductor_sg"
    assert found["inductor_triton"] == "/tmp/torchinductor_sg/triton"
    assert found["fxgraph"] == "/tmp/torchinductor_sg/fxgraph"
    assert found["aotautograd"] == "/tmp/torchinductor_sg/aotautograd"
    assert found["triton"] == "/home/sg/.triton/cache"
    assert found["flashinfer"] == "/home/sg/.cache/flashinfer"
    assert found["tvm_ffi"] == "/home/sg/.cache/tvm-ffi"
    assert found["cuda"] == "/home/sg/.nv/ComputeCache"
    assert found["deep_gemm"] == "/home/sg/.cache/deep_gemm"
    assert found["sglang"] == "/home/sg/.cache/sglang"
    assert where("0.5.10.post1") == found


@pytest.mark.parametrize("version", ["0.5.18", "0.5.23", "v0.5.23.post2+cu130", "0.6", "1.0.0"])
def test_from_0_5_18_on_everything_is_below_sglangs_own_directory(version: str) -> None:
    found = where(version)
    assert found["inductor"] == "/home/sg/.cache/sglang/inductor"
    assert found["triton"] == "/home/sg/.cache/sglang/triton"
    assert found["cuda"] == "/home/sg/.cache/sglang/nv"
    assert found["flashinfer"] == "/home/sg/.cache/sglang/.cache/flashinfer"
    assert found["flashinfer_tuning"] == "/home/sg/.cache/sglang/flashinfer/autotune"


def test_variables_win_over_defaults() -> None:
    found = where(
        "0.5.11",
        TRITON_CACHE_DIR="/c/t",
        TORCHINDUCTOR_CACHE_DIR="/c/i/",
        FLASHINFER_WORKSPACE_BASE="/c/f",
        DG_JIT_CACHE_DIR="/c/d",
        SGLANG_DG_CACHE_DIR="/c/sd",
        TVM_FFI_CACHE_DIR="/c/v",
        CUDA_CACHE_PATH="/c/n",
        SGLANG_CACHE_DIR="~/c",
    )
    assert found["triton"] == "/c/t"
    assert found["inductor"] == "/c/i"
    assert found["aotautograd"] == "/c/i/aotautograd"
    assert found["flashinfer"] == "/c/f/.cache/flashinfer"
    assert found["deep_gemm"] == "/c/sd"
    assert found["tvm_ffi"] == "/c/v"
    assert found["cuda"] == "/c/n"
    assert found["sglang"] == "/home/sg/c"


def test_sglangs_own_directory_takes_the_others_along_since_0_5_18_but_not_its_jit() -> None:
    found = where("0.5.23", SGLANG_CACHE_DIR="/data/sg")
    assert found["inductor"] == "/data/sg/inductor"
    assert found["deep_gemm"] == "/data/sg/deep_gemm"
    assert found["sglang_jit"] == "/home/sg/.cache/sglang/jit"


def test_triton_home_counts_only_where_sglang_does_not_redirect() -> None:
    assert where("0.5.11", TRITON_HOME="/x")["triton"] == "/x/.triton/cache"
    assert where("0.5.23", TRITON_HOME="/x")["triton"] == "/home/sg/.cache/sglang/triton"


def test_names_follow_pythons_rules() -> None:
    assert where(USER="other", LOGNAME="first")["inductor"] == "/tmp/torchinductor_first"
    assert where(TMPDIR="/scratch")["inductor"] == "/scratch/torchinductor_sg"
    assert where(TEMP="/scratch2", TMPDIR="")["inductor"] == "/scratch2/torchinductor_sg"
    assert where(user="DOM\\u:1")["inductor"] == "/tmp/torchinductor_DOM_u_1"
    assert where(HOME="/h")["triton"] == "/h/.triton/cache"
    assert where(TRITON_CACHE_DIR="cache/t", cwd="/srv")["triton"] == "/srv/cache/t"


@pytest.mark.parametrize("version", [None, "", "unknown"])
def test_an_unknown_version_gives_the_places_of_every_layout(version: str | None) -> None:
    places = locate.locate(version=version, environ={}, home=Path("/h"), tmpdir=Path("/tmp"), user="u")
    found = {(place.kind, str(place.path)) for place in places}
    assert ("inductor", "/h/.cache/sglang/inductor") in found
    assert ("inductor", "/tmp/torchinductor_u") in found
    assert len(found) == len(places)


def test_a_place_tells_why_it_is_there() -> None:
    places = locate.locate(version="0.5.11", environ={"TRITON_CACHE_DIR": "/t"}, home=Path("/h"), tmpdir=Path("/tmp"), user="u")
    named = {place.kind: place for place in places}
    assert named["triton"].why == "TRITON_CACHE_DIR"
    assert named["inductor"].why == "default of SGLang before 0.5.18"
    assert named["inductor"].variable == "TORCHINDUCTOR_CACHE_DIR"
    assert named["fxgraph"].variable == ""


def test_the_environment_of_a_process_is_read() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env={"TRITON_CACHE_DIR": "/t", "ODD": "a=b"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert locate.environment_of(process.pid) == {"TRITON_CACHE_DIR": "/t", "ODD": "a=b"}
        process.kill()


BLANKED = """
import ctypes, os, sys
child = os.fork()
if not child:
    # what setproctitle does: the block of the environment is overwritten where it stands, here up to the last variable
    stat = open("/proc/self/stat").read().rpartition(")")[2].split()
    begin, end = int(stat[47]), int(stat[48])
    ctypes.memset(begin, 0, end - begin - int(sys.argv[1]))
    ctypes.memmove(begin, b"sglang::scheduler", 17)
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize("left", ["", "LATE=1"])
def test_a_blanked_environment_is_completed_by_the_parent(left: str) -> None:
    kept = len(left) + 1 if left else 0
    with subprocess.Popen(
        [sys.executable, "-c", BLANKED, str(kept)],
        env={"TRITON_CACHE_DIR": "/t", "MIDDLE": "1", "LATE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        blanked = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"TRITON" not in blanked
        assert left.encode() in blanked
        assert locate.environment_of(pid) == {"TRITON_CACHE_DIR": "/t", "MIDDLE": "1", "LATE": "1"}
        process.stdin.close()


def test_a_process_that_is_gone_has_no_environment() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert locate.environment_of(process.pid) is None
    assert locate.parent_of(process.pid) == 0


def test_an_environment_that_may_not_be_read_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert locate.environment_of(os.getpid()) is None


def test_without_a_parent_that_tells_the_environment_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"\0\0LATE=1\0")
    assert locate.environment_of(os.getpid()) is None


PLACE = CachePlace("inductor", Path("/tmp/torchinductor_u"), "default")


def test_a_process_in_our_own_mount_namespace_means_our_directories() -> None:
    assert locate.as_seen_by(os.getpid(), (PLACE,)) == (PLACE,)
    assert PLACE.here == PLACE.path


def test_a_process_that_cannot_be_looked_into_is_taken_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate.as_seen_by(2**22 + 1, (PLACE,)) == (PLACE,)


def test_a_private_temporary_directory_is_read_through_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (theirs / "cache").mkdir(parents=True)
    ours.mkdir()
    monkeypatch.setattr(os, "readlink", lambda path: f"mnt:[{'1' if 'self' in str(path) else '2'}]")
    identities = {f"/proc/77/root{ours}": theirs, f"/proc/77/root{ours}/cache": theirs / "cache"}
    real = locate._identity
    monkeypatch.setattr(locate, "_identity", lambda path: real(str(identities.get(path, path))))
    inside = CachePlace("inductor", ours / "cache", "default")
    [seen] = locate.as_seen_by(77, (inside,))
    assert seen.through == "/proc/77/root"
    assert seen.here == Path(f"/proc/77/root{ours}/cache")


def test_a_shared_directory_in_another_namespace_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "readlink", lambda path: f"mnt:[{'1' if 'self' in str(path) else '2'}]")
    real = locate._identity
    monkeypatch.setattr(locate, "_identity", lambda path: real(path.removeprefix("/proc/77/root") or "/"))
    shared = CachePlace("triton", tmp_path / "not" / "there", "default")
    assert locate.as_seen_by(77, (shared,)) == (shared,)


def test_two_views_of_nothing_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "_identity", lambda path: None)
    assert locate._same("/proc/77/root/a/b", "/a/b")
