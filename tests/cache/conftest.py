"""The caches of a real H200, from their listing."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cache_trees import DATA, write

from pytest_sglang.cache.locate import CachePlace, locate


@pytest.fixture
def h200(tmp_path: Path) -> tuple[tuple[CachePlace, ...], Callable[[str], Path]]:
    """The caches of a real H200 after three starts, and where a path of the listings is."""
    places = locate(version="0.5.11", environ={}, home=tmp_path / "home", tmpdir=tmp_path / "tmp", user="root")
    named = {place.kind: place.path for place in places}

    def path_of(text: str) -> Path:
        top, _, rest = text.partition("/")
        return {"{inductor}": named["inductor"], "{triton}": named["triton"], "{home}": tmp_path / "home"}[top] / rest

    with gzip.open(DATA / "h200-sglang-0.5.11.tsv.gz", "rt") as listing:
        for line in listing:
            size, text = line.rstrip("\n").split("\t")
            write(path_of(text), int(size))
    return places, path_of


@pytest.fixture
def real_triton(tmp_path: Path) -> Path:
    """A Triton cache of three real entries: triton_poi_fused_add_0 for sm_86 (twice) and sm_90, compiled by Triton 3.6.0 and its ptxas."""
    root = tmp_path / "triton"
    shutil.copytree(DATA / "triton-3.6.0", root)
    for group in root.glob("*/*.json"):
        group.write_text(group.read_text().replace("{cache}", str(root)))
    for entry in root.iterdir():
        for name in ("source", "ttir", "ttgir", "llir"):
            write(entry / f"triton_poi_fused_add_0.{name}", 1000)
    return root
