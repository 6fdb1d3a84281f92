"""Two runs of one rig: the second one's page says what has changed since the first passed, and folds the logs."""

from __future__ import annotations

import json
from pathlib import Path

from suite import run_suite

ONLY = ("--power=250", "-k", "power_limit")


def test_a_failing_run_names_what_has_changed_since_the_last_pass(tmp_path: Path) -> None:
    first, run = run_suite(tmp_path, *ONLY)
    assert first.returncode == 0, first.stdout[-2000:]
    assert run["since_pass"] == {"looked_in": "reports"}
    (folder,) = (path.parent for path in (tmp_path / "reports").glob("*/run.json"))
    page = (folder / "report.html").read_text()
    assert "no earlier pass of this rig in reports/" in page
    # the start that the run found, with an excerpt of its log; what it set back, and nothing of the rig's own folder
    assert [item["title"].partition(",")[0] for item in run["logs"]] == ["Server: the start that the run found"]
    assert "server_args=ServerArgs(" in (folder / "logs" / "start-1.log").read_text()
    assert "<details><summary>Server: the start that the run found" in page

    second, _ = run_suite(tmp_path, *ONLY, "--sglang-fault=power-limit-clamped,pcie-x4")
    assert second.returncode == 1, second.stdout[-2000:]
    (after,) = (json.loads(path.read_text()) for path in (tmp_path / "reports").glob("*/run.json") if path.parent != folder)
    assert after["since_pass"]["run_id"] == run["run_id"]
    told = {each["name"]: (each["before"], each["after"]) for each in after["since_pass"]["differences"]}
    assert told == {
        "faults": ([], ["power-limit-clamped", "pcie-x4"]),
        "gpu 1 pcie_width": (16, 4),
        "gpu 3 enforced_power_limit_w": (250.0, 220.0),
    }
    said = " ".join(second.stdout.split())
    assert f"since the last pass ({after['started'][8:10].lstrip('0')} " in said
    assert "injected faults none -> power-limit-clamped, pcie-x4, GPU 1 PCIe width 16 -> 4" in said

    third, _ = run_suite(tmp_path, *ONLY)
    newest = max(
        (json.loads(path.read_text()) for path in (tmp_path / "reports").glob("*/run.json")), key=lambda each: each["run_id"]
    )
    assert third.returncode == 0
    assert newest["since_pass"]["run_id"] == run["run_id"]
    assert newest["since_pass"]["differences"] == []
    assert "since the last pass" not in third.stdout
