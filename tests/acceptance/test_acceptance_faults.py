"""The whole suite on the simulated rig, clean and with each fault: exactly what the table says, with the cause named."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from faults import CAUSES, TABLE, verdicts
from suite import run_suite

IN_CI = ("slow-decode", "power-limit-lost", "nvlink-dead", "cache-cold", "dies-loading", "early-stop", "dies-serving")
IN_PART = {"compiles-after-ready": "warm_restart", "port-opens-early": "warm_restart", "log-silent": "cold_start"}
"""Faults of which CI runs the checks concerned only (-k); the wait for readiness itself is tested with all of them."""


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
def test_the_check_that_a_fault_concerns(fault: str, runs: dict[str, Future[Any]]) -> None:
    done, run = runs[fault].result()
    found = verdicts(run)
    assert list(found) == [IN_PART[fault].replace("_", "-")], done.stdout[-6000:]
    assert found.items() <= TABLE[fault].items(), done.stdout[-6000:]
    for check in run["checks"]:
        assert CAUSES.get(fault, {}).get(check["id"], "") in f"{check['message']} {check['cause']}"
