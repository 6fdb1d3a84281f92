"""Compile caches in the acceptance suite: a start that compiles is caught and explained, cold caches are kept on demand."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faults import CAUSES
from suite import run_suite

FAULTS = ("cache-graphs-lost", "cache-late")
"""Those whose starts are short; the others run in ``make soak``, and each finding's fault in tests/session."""
CHOSEN = ("-k", "identity or ready or findings or warm")


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    """The faults' runs, under way, and one that keeps its cold caches."""
    folders = {fault: tmp_path_factory.mktemp(fault) for fault in FAULTS}
    kept = tmp_path_factory.mktemp("kept")
    with ThreadPoolExecutor(3) as pool:
        yield {
            "kept": pool.submit(
                run_suite,
                kept,
                "-k",
                "identity or ready or cold",
                "--sglang-keep-cold-cache",
                f"--sglang-simulated-dir={kept / 'rig'}",
            ),
            **{fault: pool.submit(run_suite, folders[fault], *CHOSEN, f"--sglang-fault={fault}") for fault in FAULTS},
        }


def check_of(run: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in run["checks"] if each["id"] == name)
    return found


@pytest.mark.parametrize("fault", ["cache-graphs-lost", "cache-late"])
def test_a_start_that_compiles_is_caught_and_explained(fault: str, runs: dict[str, Future[Any]]) -> None:
    done, run = runs[fault].result()
    warm = check_of(run, "warm-restart")
    assert warm["verdict"] == "fail", done.stdout[-3000:]
    assert CAUSES[fault]["warm-restart"] in warm["cause"]
    assert warm["measured"]["kernels_after_ready"]["value"] == (2 if fault == "cache-late" else 0)
    assert done.returncode == 1


def test_cold_caches_stay_where_that_is_asked_for_and_nothing_is_lost(runs: dict[str, Future[Any]]) -> None:
    done, run = runs["kept"].result()
    assert check_of(run, "cold-start")["verdict"] == "pass", done.stdout[-3000:]
    from pytest_sglang.simulator.rig import SimulatedRig

    kept = {
        Path(each["subject"]): Path(each["remedy"].removeprefix("rm -r "))
        for each in run["findings"]
        if each["kind"] == "caches-kept"
    }
    [new] = kept
    rig = SimulatedRig.open(new.parents[2])
    try:
        for cache in (new, kept[new]):
            assert len(list(cache.rglob("*.cubin"))) > 100
            assert len(list(cache.rglob("*.best_config"))) > 20
        # the server that was found running runs on the new caches, and nothing is left to be put back
        assert rig.state()["active"] == "active"
        assert run["as_left"]["caches_aside"] == []
        assert list((folder_of(rig) / "state" / "journal").glob("*.jsonl")) == []
    finally:
        rig.destroy()


def folder_of(rig: Any) -> Path:
    """Where the run of this rig kept everything."""
    return Path(rig.directory).parent
