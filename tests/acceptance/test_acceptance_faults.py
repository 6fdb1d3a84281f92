"""The whole suite on the simulated rig, clean and with each fault: exactly what the table says, with the cause named."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from faults import CAUSES, TABLE, verdicts
from suite import run_suite

IN_CI = ("slow-decode", "power-limit-lost", "nvlink-dead", "cache-cold", "dies-loading", "early-stop", "dies-serving")
IN_PART = {
    "power-limit-clamped": "gpu_identity or power_limit",
    "persistence-off": "gpu_identity or power_limit",
    "thermal-slowdown": "server_identity or ready or power_limit or decode or throttling",
    "compiles-after-ready": "warm_restart",
    "port-opens-early": "warm_restart",
    "log-silent": "cold_start",
    "garbled-answers": "warm_restart or answers",
}
"""Faults of which CI makes the checks concerned only (``-k``); ``make soak`` sends them through the whole suite."""

AT_ONCE = 3
"""Each run has a rig of its own and mostly waits; more at once would be measured by each other's load."""


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    """The chosen faults' runs of the suite, under way."""
    chosen = [
        item.callspec.params["fault"] for item in request.session.items if item.path == request.path and hasattr(item, "callspec")
    ]
    folders = {fault: tmp_path_factory.mktemp(fault) for fault in chosen}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        part = {fault: ("-k", IN_PART[fault]) if fault in IN_PART else () for fault in chosen}
        yield {
            fault: pool.submit(run_suite, folders[fault], "--power=250", f"--sglang-fault={fault}", *part[fault])
            for fault in chosen
        }


@pytest.mark.parametrize("fault", IN_CI)
def test_whole_suite_with_a_fault(fault: str, runs: dict[str, Future[Any]]) -> None:
    done, run = runs[fault].result()
    assert verdicts(run) == TABLE[fault], done.stdout[-6000:]
    assert done.returncode == 1, done.stdout[-3000:]
    assert run["verdict"] == "fail"
    for check_id, needle in CAUSES[fault].items():
        check = next(each for each in run["checks"] if each["id"] == check_id)
        assert needle in f"{check['message']} {check['cause']}", check
    assert "SIMULATED" in done.stdout


@pytest.mark.parametrize("fault", IN_PART)
def test_the_checks_that_can_notice_a_fault(fault: str, runs: dict[str, Future[Any]]) -> None:
    done, run = runs[fault].result()
    made = verdicts(run)
    assert made
    assert made == {check: TABLE[fault][check] for check in made}, done.stdout[-6000:]
    expected = 1 if "fail" in made.values() else 0 if set(made.values()) == {"pass"} else 6
    assert done.returncode == expected, done.stdout[-3000:]
    for check_id, needle in CAUSES.get(fault, {}).items():
        check = next((each for each in run["checks"] if each["id"] == check_id), None)
        assert check is None or needle in f"{check['message']} {check['cause']}", check
    assert not CAUSES.get(fault) or set(CAUSES[fault]) & set(made)
