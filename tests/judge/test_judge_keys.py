"""What is under test is named; conditions that differ are told apart from changes."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_sglang.judge import keys

BASE: dict[str, Any] = {
    "rig": "attic",
    "model": "m",
    "client": "0.1.0",
    "engine": "0.5.11",
    "torch_compile": True,
    "nvlink": True,
    "driver": "580",
    "package torch": "2.11.0",
    "argument enable_torch_compile": True,
    "argument cuda_graph_max_bs": 8,
    "gpu 0 name": "RTX 3090",
    "gpu 0 enforced_power_limit_w": 250.0,
    "workload output_tokens": 128,
}


def changed(**different: Any) -> dict[str, Any]:
    return {**BASE, **{name.replace("__", " "): value for name, value in different.items()}}


@pytest.mark.parametrize(
    ("after", "thing"),
    [
        (changed(driver="590"), "driver"),
        (changed(engine="0.5.12", package__torch="2.12.0", argument__cuda_graph_max_bs=24), "engine"),
        (changed(engine="0.5.12", driver="590"), None),
        (changed(torch_compile=False, argument__enable_torch_compile=False), "torch_compile"),
        (changed(torch_compile=False, argument__cuda_graph_max_bs=4), None),
        (changed(nvlink=False), "nvlink"),
        (changed(gpu__0__enforced_power_limit_w=390.0), "power"),
        (changed(package__torch="2.12.0", package__triton="3.7.0"), "torch, triton"),
        (changed(), None),
    ],
)
def test_the_one_thing_under_test(after: dict[str, Any], thing: str | None) -> None:
    assert keys.under_test(keys.differences(BASE, after)) == thing


@pytest.mark.parametrize("name", ["rig", "model", "client", "workload output_tokens", "gpu 0 name"])
def test_conditions_come_first(name: str) -> None:
    found = keys.differences(BASE, {**BASE, name: "other", "driver": "590"})
    assert [(each.name, each.kind) for each in found] == [(name, "condition"), ("driver", "change")]
    assert "driver: 580, now 590" in [str(each) for each in found]


def test_what_one_run_does_not_know_differs() -> None:
    less = {name: value for name, value in BASE.items() if name != "driver"}
    assert [str(each) for each in keys.differences(BASE, less)] == ["driver: 580, now not known"]
    assert keys.shown("x" * 90).endswith("...")
