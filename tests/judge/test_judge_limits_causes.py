"""The likely cause in one line; nothing is claimed of what was not looked at."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_sglang.judge.causes import Observed, recompiled, slow_decode, slow_start
from pytest_sglang.record.values import CacheDiff, Phase, Startup

FINE: dict[str, Any] = {
    "power_w": 250.0,
    "enforced_w": {"GPU 0": 250.0, "GPU 1": 250.4},
    "links_missing": (),
    "reasons": {"GPU 0": {"sw_power_cap": 0.98, "gpu_idle": 0.5, "hw_thermal_slowdown": 0.005}, "GPU 1": {}},
    "foreign_processes": (),
    "foreign_requests": 0,
    "torch_compile": True,
    "torch_compile_promised": True,
    "cuda_graph": True,
    "pcie": {"GPU 0": (16, 16)},
    "temperature_c": {"GPU 0": 80.0, "GPU 1": 99.0},
    "slowdown_c": {"GPU 0": 93.0},
}


def test_when_all_is_in_order_it_says_what_was_looked_at() -> None:
    assert slow_decode(Observed(**FINE)) == (
        "no cause found among: power limit, NVLink, throttling, temperature, foreign processes, foreign requests, torch.compile, "
        "CUDA graphs, PCIe width"
    )


def test_what_was_not_looked_at_is_not_named() -> None:
    assert slow_decode(Observed()) == "no cause found: nothing could be looked at"
    assert slow_decode(Observed(links_missing=(), cuda_graph=True)) == "no cause found among: NVLink, CUDA graphs"
    assert slow_decode(Observed(enforced_w={"GPU 0": 350.0})) == "no cause found: nothing could be looked at", (
        "no level was asked for"
    )
    assert slow_decode(Observed(temperature_c={"GPU 0": 99.0})) == "no cause found: nothing could be looked at", "hot against what?"


@pytest.mark.parametrize(
    ("off", "said"),
    [
        ({"enforced_w": {"GPU 0": 250.0, "GPU 2": 350.0}}, "power limit: GPU 2 enforces 350 W, asked 250 W"),
        ({"links_missing": ("GPU 2-3: no link",)}, "NVLink is missing on serving cards (GPU 2-3: no link)"),
        (
            {"reasons": {"GPU 1": {"hw_thermal_slowdown": 0.123}}},
            "GPU 1 was too hot (hardware thermal slowdown) for 12 % of the time",
        ),
        (
            {"reasons": {"GPU 1": {"hw_power_brake_slowdown": 1.0}}},
            "GPU 1 was held by an outside power brake for 100 % of the time",
        ),
        ({"temperature_c": {"GPU 0": 91.0}}, "GPU 0 at 91 C, it slows down at 93 C"),
        ({"foreign_processes": ("ffmpeg (pid 7)",)}, "other processes on the serving GPUs: ffmpeg (pid 7)"),
        ({"foreign_requests": 2}, "2 requests of somebody else ran meanwhile"),
        ({"torch_compile": False}, "torch.compile is promised, but off"),
        ({"cuda_graph": False}, "decoding runs without CUDA graphs"),
        ({"pcie": {"GPU 0": (4, 16)}}, "GPU 0 on PCIe x4, promised x16"),
    ],
)
def test_each_thing_that_is_off_is_the_cause(off: dict[str, Any], said: str) -> None:
    assert slow_decode(Observed(**{**FINE, **off})) == said


def test_the_likeliest_of_several_comes_first() -> None:
    told = slow_decode(
        Observed(**{**FINE, "cuda_graph": False, "enforced_w": {"GPU 2": 350.0}, "links_missing": ("GPU 2-3: no link",)})
    )
    assert told.split("; ") == [
        "power limit: GPU 2 enforces 350 W, asked 250 W",
        "NVLink is missing on serving cards (GPU 2-3: no link)",
        "decoding runs without CUDA graphs",
    ]


def test_torch_compile_that_is_not_promised_is_no_cause() -> None:
    assert "torch.compile" in slow_decode(Observed(torch_compile=False)).removeprefix("no cause found among: ")
    assert slow_decode(Observed(torch_compile=False)).startswith("no cause found")


# --- starts -----------------------------------------------------------------------------------------------------------------------

PHASES = (
    Phase("launch", 0.0, 8.0),
    Phase("weights", 8.0, 30.0),
    Phase("capture_decode", 30.0, 71.0),
    Phase("port_open", 71.0, 71.0),
    Phase("warmup", 71.0, None),
)


def a_start(**fields: Any) -> Startup:
    return Startup(**{"kind": "warm", "launched_at": 0.0, "phases": PHASES, "ready_s": 94.1, **fields})


def test_a_slow_start_names_its_longest_phase_and_what_it_compiled() -> None:
    diff = CacheDiff(new_kernels=tuple(f"k{index}" for index in range(120)), before_entries=0)
    assert slow_start(a_start(cache_diff=diff)) == "41 s of it in capture_decode; 120 new kernels, caches were empty"
    assert slow_start(a_start(autotune_runs=1)) == "41 s of it in capture_decode; 1 autotuning run"
    assert slow_start(a_start(phases=())) is None


def test_against_a_usual_start_the_phase_that_grew_most_is_named() -> None:
    assert slow_start(a_start(), {"capture_decode": 40.0, "weights": 10.0}) == "22 s of it in weights, 12.0 s more than usual"
    assert slow_start(a_start(), {"capture_decode": 41.0, "weights": 25.0, "launch": 9.0}) == "41 s of it in capture_decode"


def test_long_and_short_phases_are_told_as_durations() -> None:
    assert slow_start(a_start(phases=(Phase("weights", 0.0, 1234.0),))) == "20 min 34 s of it in weights"
    assert slow_start(a_start(phases=(Phase("weights", 0.0, 4.321),))) == "4.32 s of it in weights"


@pytest.mark.parametrize(
    ("diff", "tuned", "changed", "said"),
    [
        (None, None, (), None),
        (None, 0, (), None),
        (CacheDiff(new_variants=("a",)), 0, (), None),
        (CacheDiff(new_kernels=("a",)), 2, (), "1 new kernel, 2 autotuning runs, caches were empty"),
        (
            CacheDiff(new_kernels=("a", "b"), before_entries=10),
            0,
            (),
            "2 new kernels, caches held 10 entries (other versions, other arguments, or a moved cache)",
        ),
        (
            CacheDiff(new_kernels=("a", "b"), before_entries=10),
            0,
            ("triton 3.5 -> 3.6",),
            "2 new kernels, since the last good start: triton 3.5 -> 3.6",
        ),
        (CacheDiff(new_graphs=2, before_entries=10), 0, (), "2 new graphs"),
        (CacheDiff(new_graphs=1, before_entries=10), 3, (), "3 autotuning runs, 1 new graph"),
    ],
)
def test_what_a_start_compiled(diff: CacheDiff | None, tuned: int | None, changed: tuple[str, ...], said: str | None) -> None:
    assert recompiled(a_start(cache_diff=diff, autotune_runs=tuned), changed) == said
