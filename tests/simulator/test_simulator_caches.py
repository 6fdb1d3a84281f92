"""Compiled kernels: real layout, recorded names, atomic, resumable."""

from __future__ import annotations

import json
import random
import re
import struct
from pathlib import Path

import pytest

from pytest_sglang.simulator.caches import Caches, Kernel, known, recorded

MODEL = "/models/home-70b-awq"


@pytest.fixture
def caches(tmp_path: Path) -> Caches:
    made = Caches(tmp_path / "triton", tmp_path / "inductor", MODEL)
    made.empty()
    return made


def test_an_empty_cache_misses_everything(caches: Caches) -> None:
    assert len(caches.missing()) == len(known(MODEL)) == sum(recorded()["variants"].values())
    assert 100 <= len(caches.missing()) <= 140
    assert len(caches.untuned()) == 10
    assert caches.size() == len(caches.missing()) + 10


def test_a_filled_cache_misses_nothing(caches: Caches) -> None:
    caches.fill()
    assert (caches.missing(), caches.untuned()) == ([], [])


def test_an_interrupted_start_leaves_what_it_had_finished(caches: Caches) -> None:
    whole = caches.missing()
    for kernel in whole[:30]:
        caches.compile(kernel)
    caches.tuned(recorded()["autotuned"][:4])
    assert caches.missing() == whole[30:]
    assert len(caches.untuned()) == 6


def test_an_entry_without_its_group_file_counts_as_missing(caches: Caches) -> None:
    kernel = caches.missing()[0]
    caches.compile(kernel)
    (caches.triton / kernel.key / f"__grp__{kernel.name}.json").unlink()
    assert caches.missing()[0] == kernel


def test_an_entry_has_tritons_layout(caches: Caches) -> None:
    kernel = caches.missing()[5]
    caches.compile(kernel)
    entry = caches.triton / kernel.key
    assert re.fullmatch(r"[A-Z2-7]{52}", kernel.key)
    wanted = {f"{kernel.name}.{suffix}" for suffix in ("source", "ttir", "ttgir", "llir", "ptx", "cubin", "json")}
    assert {each.name for each in entry.iterdir()} == wanted | {f"__grp__{kernel.name}.json"}
    children = json.loads((entry / f"__grp__{kernel.name}.json").read_text())["child_paths"]
    assert children == {name: str(entry / name) for name in wanted}
    metadata = json.loads((entry / f"{kernel.name}.json").read_text())
    assert metadata["target"] == {"backend": "cuda", "arch": 86, "warp_size": 32}
    assert (metadata["name"], metadata["triton_version"]) == (kernel.name, "3.6.0")
    assert re.fullmatch(r"[0-9a-f]{64}", metadata["hash"])


def test_a_cubin_is_a_well_formed_elf_for_cuda(caches: Caches) -> None:
    kernel = caches.missing()[0]
    caches.compile(kernel)
    data = (caches.triton / kernel.key / f"{kernel.name}.cubin").read_bytes()
    assert data[:5] == b"\x7fELF\x02"
    machine, table_at, flags, size, number = (
        *struct.unpack_from("<H", data, 18),
        *struct.unpack_from("<Q", data, 40),
        *struct.unpack_from("<I", data, 48),
        *struct.unpack_from("<HH", data, 58),
    )
    assert (machine, flags & 0xFF) == (190, 86)
    assert table_at + size * number == len(data)


def test_inductors_tree_has_its_layout(caches: Caches) -> None:
    caches.fill()
    names = {str(path.relative_to(caches.inductor)) for path in caches.inductor.rglob("*") if path.is_file()}
    forms = {
        r"([a-z2-7]{2})/c[a-z2-7]\w{50}\.py": 24,
        r"[0-9a-f]{2}/[0-9a-f]{64}\.best_config": 26,
        r"fxgraph/([a-z2-7]{2})/f[a-z2-7]{51}/[a-z2-7]{52}": 8,
        r"aotautograd/a[a-z2-7]{51}/[a-z2-7]{52}": 12,
        r"cache/[0-9a-f]{64}": 1,
        r"locks/[a-z2-7]{52}\.lock": 1,
    }
    assert {form: sum(bool(re.fullmatch(form, name)) for name in names) for form in forms} == forms
    assert len(names) == sum(forms.values())
    code = next(name for name in names if name.endswith(".py"))
    assert code[:2] == code.split("/")[1][1:3]


def test_writing_twice_changes_no_existing_file(caches: Caches) -> None:
    caches.fill()
    before = {path: path.stat().st_mtime_ns for path in caches.inductor.rglob("*.py")}
    caches.write_inductor()
    assert {path: path.stat().st_mtime_ns for path in caches.inductor.rglob("*.py")} == before


def test_nothing_half_written_is_left(caches: Caches) -> None:
    caches.fill()
    left = [path for path in caches.triton.parent.rglob("*") if path.name.startswith(("tmp.pid_", ".")) or path.suffix == ".tmp"]
    assert left == []


def test_variants_have_known_names_and_new_keys(caches: Caches) -> None:
    variants = caches.variants(30, random.Random(1))
    assert {each.name for each in variants} <= set(recorded()["variants"])
    assert not {each.key for each in variants} & {each.key for each in known(MODEL)}
    assert len({each.key for each in variants + caches.variants(30, random.Random(1))}) == 60


def test_another_model_has_kernels_of_its_own(caches: Caches) -> None:
    assert not {kernel.key for kernel in known(MODEL)} & {kernel.key for kernel in known("/models/other")}


def test_a_broken_choices_file_is_tuned_again(caches: Caches) -> None:
    caches.tuned(["mm(4x8192, 8192x2560)"])
    (stored,) = (caches.inductor / "cache").iterdir()
    stored.write_text("{")
    assert len(caches.untuned()) == 10


def test_the_same_kernel_has_the_same_digest() -> None:
    assert Kernel("a", "B").digest == Kernel("a", "B").digest != Kernel("a", "C").digest
