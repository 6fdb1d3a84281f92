"""Compiled kernels of the simulated server: real files, in Triton's and Inductor's layout, under the names of a recorded start.

Entries of known kernels have fixed keys, so that a start after an emptied cache compiles the same set again, and a start that was
interrupted finds what its predecessor had finished.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import struct
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_RECORDED = Path(__file__).parent / "recorded"
_TRITON = "3.6.0"
_ARCH = 86
_SUFFIXES = ("source", "ttir", "ttgir", "llir", "ptx", "cubin", "json")
_GRAPHS, _CONFIGS, _FX, _AOT = 24, 26, 8, 12


@dataclass(frozen=True)
class Kernel:
    """One compiled variant of a kernel; ``key`` is its directory below Triton's cache."""

    name: str
    key: str
    triton: str = _TRITON
    arch: int = _ARCH

    @property
    def digest(self) -> str:
        """The hash that its metadata states."""
        return hashlib.sha256(f"{self.name}{self.key}".encode()).hexdigest()


def base32(text: str, length: int = 52) -> str:
    """Upper-case base32 of the sha256 of ``text``, as Triton names its entries."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")[:length]


@cache
def recorded() -> dict[str, Any]:
    """Kernel names with their number of variants, and the matrix shapes that are autotuned."""
    found: dict[str, Any] = json.loads((_RECORDED / "kernels.json").read_text(encoding="utf-8"))
    return found


@cache
def known(model: str, triton: str = _TRITON) -> tuple[Kernel, ...]:
    """Every kernel that a start with ``model`` compiles; another Triton has the same names and other keys."""
    variants: dict[str, int] = recorded()["variants"]
    salt = model if triton == _TRITON else f"{model} {triton}"
    return tuple(Kernel(name, base32(f"{salt}/{name}/{n}"), triton) for name, count in variants.items() for n in range(count))


def larger(model: str) -> tuple[Kernel, ...]:
    """What a start compiles beside for larger batches: names of their own."""
    return tuple(Kernel(f"triton_red_fused_mm_t_{9 + n}", base32(f"{model}/larger/{n}")) for n in range(6))


def late(model: str) -> tuple[Kernel, ...]:
    """What is compiled at the first requests where the warm-up did not."""
    return tuple(Kernel(name, base32(f"{model}/late/{name}")) for name in ("_fwd_kernel_stage1_rare", "triton_poi_fused_late_0"))


class Caches:
    """The two trees of one server."""

    def __init__(self, triton: Path, inductor: Path, model: str, version: str = _TRITON) -> None:
        self.triton, self.inductor, self.model, self.version = triton, inductor, model, version

    @property
    def known(self) -> tuple[Kernel, ...]:
        """Every kernel that a start compiles."""
        return known(self.model, self.version)

    # --- what is there -----------------------------------------------------------------------------------------------------

    def missing(self) -> list[Kernel]:
        """Known kernels that are not compiled, in their order.

        An entry counts by its group file, which is written last, and by the metadata to which that leads, wherever they are.
        """
        return [kernel for kernel in self.known if not self._found(kernel)]

    def _found(self, kernel: Kernel) -> bool:
        try:
            group = json.loads((self._entry(kernel) / f"__grp__{kernel.name}.json").read_text(encoding="utf-8"))
            return os.path.exists(group["child_paths"][f"{kernel.name}.json"])
        except (OSError, ValueError, KeyError):
            return False

    def untuned(self) -> list[str]:
        """Matrix shapes whose tuning result is not stored."""
        done = self._tuned()
        return [shape for shape in recorded()["autotuned"] if shape not in done]

    def size(self) -> int:
        """Number of known kernels and shapes together."""
        return len(self.known) + len(recorded()["autotuned"])

    # --- writing -----------------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Everything that a finished cold start leaves behind; written straight, since nobody looks yet."""
        for kernel in self.known:
            self._entry(kernel).mkdir(parents=True, exist_ok=True)
            for name, data in self._files(kernel):
                _put(self._entry(kernel) / name, data)
        self.tuned(recorded()["autotuned"])
        self.write_inductor()

    def variants(self, number: int, noise: random.Random) -> list[Kernel]:
        """New variants of known kernels, as coordinate-descent tuning makes them at every start: known names, new entries."""
        reductions = [name for name in recorded()["variants"] if name.startswith("triton_red")]
        return [Kernel(noise.choice(reductions), base32(f"{noise.random()}{uuid.uuid4()}")) for _ in range(number)]

    def compile(self, kernel: Kernel) -> None:
        """Write one entry: each file beside its place and renamed, the group file last."""
        entry = self._entry(kernel)
        beside = entry / f"tmp.pid_{os.getpid()}_{uuid.uuid4()}"
        beside.mkdir(parents=True, exist_ok=True)
        for name, data in self._files(kernel):
            _put(beside / name, data)
            (beside / name).rename(entry / name)
        beside.rmdir()

    def _files(self, kernel: Kernel) -> list[tuple[str, bytes]]:
        """Names and contents of an entry's files, in the order in which they are written."""
        entry = self._entry(kernel)
        files = [(f"{kernel.name}.{suffix}", _content(kernel, suffix)) for suffix in _SUFFIXES]
        group = {"child_paths": {name: str(entry / name) for name, _ in files}}
        return [*files, (f"__grp__{kernel.name}.json", json.dumps(group).encode())]

    def tuned(self, shapes: list[str]) -> None:
        """Store tuning results of matrix shapes."""
        done = self._tuned() | {shape: {"choice": "triton_mm_8", "time_ms": 0.0286} for shape in shapes}
        system = {"device": {"name": "NVIDIA GeForce RTX 3090"}, "version": {"cuda": "13.0", "triton": self.version}}
        path = self._choices()
        _write(path, json.dumps({"system": system, "cache": done}).encode())

    def write_inductor(self) -> None:
        """Generated code, tuning winners, graph caches and locks below Inductor's root; what exists stays as it is."""
        salt = self.model if self.version == _TRITON else f"{self.model} {self.version}"
        for n in range(_GRAPHS):
            name = "c" + base32(f"{salt}/py/{n}", 51).lower()
            code = f"# AOT ID: ['{n}_inference']\nfrom torch._inductor.async_compile import AsyncCompile\n"
            _write_new(self.inductor / name[1:3] / f"{name}.py", code.encode() + b"# generated\n" * 120)
        for n in range(_CONFIGS):
            self._best_config(n)
        for n in range(_FX):
            folder = "f" + base32(f"{salt}/fx/{n}", 51).lower()
            path = self.inductor / "fxgraph" / folder[1:3] / folder / base32(f"fx/{n}").lower()
            _write_new(path, b"\x80\x05\x95" + folder.encode() * 40 + b".")
        for n in range(_AOT):
            folder = "a" + base32(f"{salt}/aot/{n}", 51).lower()
            _write_new(
                self.inductor / "aotautograd" / folder / base32(f"aot/{n}").lower(), b"\x80\x05\x95" + folder.encode() * 30 + b"."
            )
        _write_new(self.inductor / "locks" / (base32(f"{self.model}/lock").lower() + ".lock"), b"")

    def _best_config(self, number: int) -> None:
        digest = hashlib.sha256(f"{self.model}/config/{number}".encode()).hexdigest()
        kernels = self.known
        config = {
            "XBLOCK": 1 << number % 4,
            "R0_BLOCK": 2048,
            "num_warps": 8,
            "num_stages": 1,
            "configs_hash": hashlib.sha256(digest.encode()).hexdigest(),
            "found_by_coordesc": number % 3 == 0,
            "time_taken_ms": 12 + number,
            "triton_cache_hash": kernels[number % len(kernels)].key,
        }
        _write_new(self.inductor / digest[:2] / f"{digest}.best_config", json.dumps(config).encode())

    def forget_tuning(self) -> None:
        """Remove the tuning results of matrix shapes."""
        shutil.rmtree(self.inductor / "cache", ignore_errors=True)

    def forget_graphs(self) -> None:
        """Remove the graph caches."""
        for name in ("fxgraph", "aotautograd"):
            shutil.rmtree(self.inductor / name, ignore_errors=True)

    def empty(self) -> None:
        """Remove everything in both trees, as a wiped temporary directory would be."""
        for tree in (self.triton, self.inductor):
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir(parents=True, exist_ok=True)

    def _entry(self, kernel: Kernel) -> Path:
        return self.triton / kernel.key

    def _choices(self) -> Path:
        return self.inductor / "cache" / hashlib.sha256(f"NVIDIA GeForce RTX 3090 13.0 {self.version}".encode()).hexdigest()

    def _tuned(self) -> dict[str, Any]:
        try:
            stored: dict[str, Any] = json.loads(self._choices().read_text(encoding="utf-8"))["cache"]
        except (OSError, ValueError, KeyError):
            return {}
        return stored


def _put(path: Path, data: bytes) -> None:
    """A new file in three system calls: there are a thousand of them."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    os.write(handle, data)
    os.close(handle)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    _put(beside, data)
    beside.rename(path)


def _write_new(path: Path, data: bytes) -> None:
    if not path.exists():
        _write(path, data)


def _content(kernel: Kernel, suffix: str) -> bytes:
    if suffix == "cubin":
        return _cubin(kernel.digest, kernel.arch)
    if suffix == "json":
        return json.dumps(_metadata(kernel)).encode()
    head = {
        "source": f'#loc = loc("{kernel.name}")\n',
        "ttir": f"module {{\n  tt.func public @{kernel.name}() {{\n",
        "ttgir": f'module attributes {{ttg.target = "cuda:{kernel.arch}"}} {{\n  tt.func public @{kernel.name}() {{\n',
        "llir": f"; ModuleID = 'LLVMDialectModule'\ndefine ptx_kernel void @{kernel.name}() {{\n",
        "ptx": f"//\n// Generated by LLVM NVPTX Back-End\n//\n.version 8.7\n.target sm_{kernel.arch}\n.visible .entry {kernel.name}(\n",
    }[suffix]
    return head.encode() + f"// {kernel.digest}\n".encode() * 12


def _metadata(kernel: Kernel) -> dict[str, Any]:
    seed = int(kernel.digest[:8], 16)
    return {
        "hash": kernel.digest,
        "target": {"backend": "cuda", "arch": kernel.arch, "warp_size": 32},
        "num_warps": 1 << seed % 4,
        "num_ctas": 1,
        "num_stages": 1 + seed % 5,
        "cluster_dims": [1, 1, 1],
        "ptx_version": None,
        "enable_fp_fusion": True,
        "debug": False,
        "backend_name": "cuda",
        "sanitize_overflow": False,
        "arch": f"sm{kernel.arch}",
        "triton_version": kernel.triton,
        "shared": 512 * (seed % 64),
        "global_scratch_size": 0,
        "name": kernel.name,
    }


def _cubin(digest: str, arch: int) -> bytes:
    """A well-formed 64-bit ELF for CUDA: header, filling, and a section table of one null section at its end."""
    filling = bytes.fromhex(digest) * (64 + int(digest[:2], 16) % 64)
    table_at = 64 + len(filling)
    flags = arch << 16 | 0x05 << 8 | arch
    ident = b"\x7fELF\x02\x01\x01\x33\x07" + b"\0" * 7
    header = struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, table_at, flags, 64, 0, 0, 64, 1, 0)
    return ident + header + filling + b"\0" * 64
