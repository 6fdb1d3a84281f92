"""Caches that a server has open, wherever environment and defaults put them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_trees import HASH, age, write

from pytest_sglang.cache import witness
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.witness import Seen

CODE = "c" + "a" * 51
MAPS = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
other = open(sys.argv[2])
print(flush=True)
input()
"""


def test_a_mapped_library_and_an_open_file_show_their_caches(tmp_path: Path) -> None:
    mapped = write(tmp_path / "own place" / "aa" / f"{CODE}.main.so", 10)
    opened = write(tmp_path / "t" / HASH / "__triton_launcher.so", 10)
    with subprocess.Popen(
        [sys.executable, "-c", MAPS, str(mapped), str(opened)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = witness.seen([process.pid])
        process.kill()
    assert {(each.kind, each.root, each.pid) for each in found} == {
        ("inductor", tmp_path / "own place", process.pid),
        ("triton", tmp_path / "t", process.pid),
    }


@pytest.mark.parametrize(
    ("path", "sign"),
    [
        (f"/tmp/torchinductor_u/triton/0/{HASH}/k.so", ("inductor", "/tmp/torchinductor_u")),
        (f"/home/u/.triton/cache/{HASH}/launcher.so", ("triton", "/home/u/.triton/cache")),
        (f"/c/ab/{CODE}.so", ("inductor", "/c")),
        ("/home/u/.cache/tvm-ffi/sgl_kernel_jit_x/k.so", ("tvm_ffi", "/home/u/.cache/tvm-ffi")),
        ("/home/u/.cache/flashinfer/0.2/86/cached_ops/x.so", ("flashinfer", "/home/u/.cache/flashinfer")),
        ("/home/u/.cache/deep_gemm/cache/kernel.x/kernel.cubin", ("deep_gemm", "/home/u/.cache/deep_gemm")),
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", None),
        ("/srv/venv/lib/python3.12/site-packages/torch/lib/libtorch.so", None),
    ],
)
def test_the_form_of_a_path_tells_its_cache(path: str, sign: tuple[str, str] | None) -> None:
    assert witness._sign(path) == sign


def test_only_what_is_known_nowhere_is_added(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    places = (CachePlace("inductor", tmp_path / "link", "TORCHINDUCTOR_CACHE_DIR"),)
    found = (
        Seen("inductor", tmp_path / "real", 7, "x"),
        Seen("triton", tmp_path / "link" / "triton", 7, "x"),
        Seen("inductor", Path("/other"), 7, "x"),
    )
    more = witness.completed(places, found)[1:]
    assert [(each.kind, str(each.path), each.why) for each in more] == [
        ("inductor", "/other", "open in pid 7"),
        ("inductor_triton", "/other/triton", "open in pid 7"),
        ("fxgraph", "/other/fxgraph", "open in pid 7"),
        ("aotautograd", "/other/aotautograd", "open in pid 7"),
    ]
    assert more[0].variable == "TORCHINDUCTOR_CACHE_DIR"
    assert witness.completed(places, ()) == places


def test_a_process_that_is_gone_shows_nothing() -> None:
    assert witness.seen([2**22 + 1]) == ()


def test_other_layouts_that_were_written_since_are_told(tmp_path: Path) -> None:
    known = (CachePlace("inductor", tmp_path / "known", "x"),)
    written, quiet = CachePlace("inductor", tmp_path / "written", "default"), CachePlace("triton", tmp_path / "quiet", "default")
    inside, absent = CachePlace("triton", tmp_path / "known" / "triton", "x"), CachePlace("cuda", tmp_path / "absent", "x")
    for each in (*known, written, quiet, inside):
        write(each.path / "ab" / "file")
    long_ago = time.time() - 1000
    for folder, _, names in os.walk(quiet.path):
        age([*(Path(folder) / name for name in names), Path(folder)], long_ago)
    [found] = witness.fresh((written, quiet, inside, absent, *known), known, long_ago + 500)
    assert (found.path, found.why) == (written.path, "written since the start (default)")
