"""What a file or directory of a compile cache is: one table of layouts. Pure: it sees names, never contents.

Sources: triton 3.6 cache.py, torch 2.11 and 2.13 _inductor/codecache.py, tvm-ffi, FlashInfer and SGLang's own JIT; a listing of a
real cache of SGLang 0.5.11 on an H200 and of 0.5.23 on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal, NamedTuple

What = Literal["kernel", "graph", "autotune", "code", "helper", "leftover", "other"]
"""kernel: compiled, with a name · graph: fxgraph, aotautograd · autotune: a tuning result · code: generated source, no proof of a
compilation · helper: launchers and probes of the compiler itself · leftover: an interrupted write · other: locks, build files."""

TRITON_ENTRY = re.compile(r"[A-Z2-7]{52}")
"""Directory of one Triton entry: base32 of a sha256, padding cut."""

MARKER = ".pytest-sglang-"
"""Begin of the names of our own files inside a cache; they are no entries."""

_GROUP = "__grp__"
_BINARIES = (".cubin", ".hsaco", ".spv", ".metallib")
_INDUCTOR_CODE = re.compile(r"(c[a-z2-7]{51})((?:\.main|\.kernel)?)\.(py|cpp|so|o|h|cu)")
_LEFTOVER = re.compile(r"tmp\.(?:pid_\d+_|[0-9a-f]{8}-)|\.staging-|.*\.tmp$")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_DEEP_GEMM = re.compile(r"kernel\.(.+)\.[0-9a-f]{16,}")
_GRAPHS = frozenset({"fxgraph", "aotautograd"})
_JIT = ("tvm_ffi", "flashinfer", "sglang_jit", "deep_gemm", "tilelang", "cute_aot")


class Name(NamedTuple):
    """What something is, with the kernel's name where it has one. ``complete`` is False for an entry of which parts are missing."""

    what: What
    kernel: str | None = None
    complete: bool = True


def triton_entry(names: Collection[str]) -> Name:
    """What a directory with ``names`` in a Triton cache is.

    The group file is written last: without it, without metadata or without a binary the entry is not complete. A cubin may have
    been dropped for another binary, so the kernel's name is taken from the group file, else from metadata or binary.
    """
    group = next((name for name in names if name.startswith(_GROUP) and name.endswith(".json")), None)
    binary = next((name for name in names if name.endswith(_BINARIES)), None)
    if group is not None:
        kernel = group[len(_GROUP) : -len(".json")]
        return Name("kernel", kernel, f"{kernel}.json" in names and binary is not None)
    metadata = next((name for name in names if name.endswith(".json")), None)
    if binary is not None or metadata is not None:
        return Name("kernel", (binary or metadata or "").rpartition(".")[0], complete=False)
    if any(name.endswith(".so") for name in names):
        return Name("helper")
    return Name("leftover", complete=False)


def file_entry(kind: str, folder: str, name: str) -> Name:
    """What file ``name`` in ``folder`` (relative to a place of ``kind``) is.

    Inductor's C++ kernels (a CPU engine) are named by a hash of their source: a new name is new code. Its ``.py`` files are
    generated wrappers: some are written anew at every start from a graph that was found in the cache.
    """
    if _LEFTOVER.match(name) or any(_LEFTOVER.match(part) for part in folder.split("/")):
        return Name("leftover", complete=False)
    parts = folder.split("/")
    if kind in _GRAPHS or not _GRAPHS.isdisjoint(parts):
        return Name("graph")
    if name.endswith(".best_config") or kind == "flashinfer_tuning" or (parts[-1] == "cache" and _HEX64.fullmatch(name)):
        return Name("autotune")
    code = _INDUCTOR_CODE.fullmatch(name)
    if code is not None:
        if code[3] != "so":
            return Name("code")
        return Name("kernel", f"cpp_{code[1]}") if code[2] else Name("helper")
    if kind in _JIT:
        return _jit(parts, name)
    return Name("other")


def _jit(parts: list[str], name: str) -> Name:
    if name.endswith(".so"):
        return Name("kernel", name.removesuffix(".so"))
    if name.endswith(_BINARIES):
        # DeepGEMM: kernel.<name>.<hash>/kernel.cubin
        named = _DEEP_GEMM.fullmatch(parts[-1])
        return Name("kernel", named[1] if named else name.rpartition(".")[0])
    return Name("other")
