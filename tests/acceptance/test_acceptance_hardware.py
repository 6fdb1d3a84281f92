"""Faults of the hardware, several in one run: each makes its own check fail and is named there. The whole table is run by make soak."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from faults import CAUSES, REFUSED, TABLE, verdicts
from suite import run_suite

AT_ONCE = 3
QUICK = "--sglang-level=1"
RUNS: dict[str, tuple[str, ...]] = {
    "nvlink-partial,row-remap-pending,foreign-process,kernel-log-hidden": (
        QUICK,
        "-k",
        "nvlink or placement or health or kernel_log",
    ),
    "nvlink-crossed,server-misplaced": (QUICK, "-k", "nvlink or placement"),
    "nvlink-errors,pcie-x4,pcie-gen1,pcie-replays,ecc-errors": ("-k", "identity or links_under_load or health"),
    "xid-79": ("--power=250", "-k", "decode or links_under_load or warm or health or kernel_log"),
    "not-supported": (QUICK, "-k", "gpu_identity or nvlink"),
}
"""Faults that do not hide one another, and the checks that must name them."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    """Every run, under way."""
    wanted = {**RUNS, **dict.fromkeys(REFUSED, (QUICK,))}
    folders = {faults: tmp_path_factory.mktemp(faults.split(",")[0]) for faults in wanted}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {each: pool.submit(run_suite, folders[each], f"--sglang-fault={each}", *more) for each, more in wanted.items()}


@pytest.mark.parametrize("faults", RUNS)
def test_each_fault_is_found_by_its_own_check(faults: str, runs: dict[str, Future[Any]]) -> None:
    done, run = runs[faults].result()
    found = verdicts(run)
    told = {check["id"]: f"{check['message']} {check['cause']}" for check in run["checks"]}
    for fault in faults.split(","):
        assert set(CAUSES[fault]) & set(told), fault
        for check, needle in CAUSES[fault].items():
            if check in told:
                assert found[check] in (TABLE[fault][check], "fail"), (fault, done.stdout[-3000:])
                assert needle in told[check], fault
    assert done.returncode == (6 if faults == "not-supported" else 1), done.stdout[-3000:]


def test_a_lost_card_ends_the_run_with_its_cause(runs: dict[str, Future[Any]]) -> None:
    _, run = runs["xid-79"].result()
    assert {check: verdict for check, verdict in TABLE["xid-79"].items() if check in verdicts(run)} == verdicts(run)
    assert "a GPU was lost in decode-throughput" in next(each["message"] for each in run["checks"] if each["id"] == "warm-restart")


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_opened_is_refused_with_what_to_do(fault: str, runs: dict[str, Future[Any]]) -> None:
    done, run = runs[fault].result()
    assert (done.returncode, run) == (4, {})
    assert REFUSED[fault] in done.stdout + done.stderr
