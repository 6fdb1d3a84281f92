"""What a name in a cache means."""

from __future__ import annotations

import pytest

from pytest_sglang.cache.entries import Name, file_entry, triton_entry

INDUCTOR_HASH = "c244b2rga7kqcbbf2xhybporem2yeo55qusvywqyipbcdmkdmkrr"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"k.cubin", "k.json", "k.ttir", "__grp__k.json"}, Name("kernel", "k")),
        ({"k.hsaco", "k.json", "__grp__k.json"}, Name("kernel", "k")),
        ({"_fwd.v2.cubin", "_fwd.v2.json", "__grp___fwd.v2.json"}, Name("kernel", "_fwd.v2")),
        ({"k.cubin", "k.json"}, Name("kernel", "k", complete=False)),
        ({"k.json"}, Name("kernel", "k", complete=False)),
        ({"k.json", "__grp__k.json"}, Name("kernel", "k", complete=False)),
        ({"k.cubin", "__grp__k.json"}, Name("kernel", "k", complete=False)),
        ({"__triton_launcher.cpython-312-x86_64-linux-gnu.so"}, Name("helper")),
        ({"cuda_utils.cpython-312-x86_64-linux-gnu.so"}, Name("helper")),
        ({"k.ttir"}, Name("leftover", complete=False)),
    ],
)
def test_triton_entries(names: set[str], expected: Name) -> None:
    assert triton_entry(names) == expected


@pytest.mark.parametrize(
    ("kind", "folder", "name", "expected"),
    [
        ("inductor", "24", f"{INDUCTOR_HASH}.main.so", Name("kernel", f"cpp_{INDUCTOR_HASH}")),
        ("inductor", "24", f"{INDUCTOR_HASH}.kernel.so", Name("kernel", f"cpp_{INDUCTOR_HASH}")),
        ("inductor", "24", f"{INDUCTOR_HASH}.so", Name("helper")),
        ("inductor", "24", f"{INDUCTOR_HASH}.main.cpp", Name("code")),
        ("inductor", "24", f"{INDUCTOR_HASH}.py", Name("code")),
        (
            "sglang",
            "torch_compile_cache/h/rank_0_0/t/inductor_cache/24",
            f"{INDUCTOR_HASH}.main.so",
            Name("kernel", f"cpp_{INDUCTOR_HASH}"),
        ),
        ("inductor", "locks", f"{INDUCTOR_HASH}.lock", Name("other")),
        ("inductor", "si", "0" * 64 + ".best_config", Name("autotune")),
        ("inductor", "cache", "0" * 64, Name("autotune")),
        ("inductor", "cache", "short", Name("other")),
        ("fxgraph", "ab/f" + "a" * 51, "x" * 51, Name("graph")),
        ("aotautograd", "a" * 52, "x" * 51, Name("graph")),
        ("sglang", "x/fxgraph/ab/f" + "a" * 51, "x" * 51, Name("graph")),
        ("fxgraph", "ab/f" + "a" * 51, ".12.34.tmp", Name("leftover", complete=False)),
        ("triton", "A" * 52 + "/tmp.pid_12_abc", "k.cubin", Name("leftover", complete=False)),
        ("sglang_jit", "cuda/m/.staging-1234", "m.so", Name("leftover", complete=False)),
        ("sglang_jit", "cuda/m/build-0/deps-0", "m.so", Name("kernel", "m")),
        ("sglang_jit", "cuda/m/build-0/deps-0", "sgl_deps.json", Name("other")),
        ("tvm_ffi", "sgl_kernel_jit_x_7a94c7914527c4e0", "sgl_kernel_jit_x.so", Name("kernel", "sgl_kernel_jit_x")),
        ("tvm_ffi", "sgl_kernel_jit_x_7a94c7914527c4e0", "build.ninja", Name("other")),
        ("deep_gemm", "cache/kernel.fp8_gemm.0123456789abcdef0123", "kernel.cubin", Name("kernel", "fp8_gemm")),
        ("deep_gemm", "cache/odd", "k2.cubin", Name("kernel", "k2")),
        ("flashinfer_tuning", "0.7/sm_90/key", "rank_tp0_pp0_dp0.json", Name("autotune")),
        ("cuda", "a/b", "index", Name("other")),
    ],
)
def test_files(kind: str, folder: str, name: str, expected: Name) -> None:
    assert file_entry(kind, folder, name) == expected
