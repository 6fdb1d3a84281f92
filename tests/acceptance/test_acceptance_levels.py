"""Several power levels in one run: set, judged once each, and put back."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from suite import run_suite


def test_each_level_is_judged_once_and_the_first_limits_stand_afterwards(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    done, run = run_suite(tmp_path, "--power=250,390", "-k", "not restart and not cold and not answers", f"--junitxml={junit}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "rig as left: limits 250 W x 6" in done.stdout
    assert set(run["as_left"]["power_limits_w"].values()) == {250.0}
    made = sorted(
        (check["id"], check["power_w"] or 0) for check in run["checks"] if check["id"] in ("decode-throughput", "power-limit")
    )
    assert made == [("decode-throughput", 250.0), ("decode-throughput", 390.0), ("power-limit", 250.0), ("power-limit", 390.0)]
    rates = {
        check["power_w"]: check["measured"]["decode_tok_s"]["value"] for check in run["checks"] if check["id"].startswith("decode")
    }
    # the curve of the cards: 39 and 52.5 tok/s, and NVLink gives 11 % more
    assert rates == pytest.approx({250.0: 39 * 1.11, 390.0: 52.5 * 1.11}, rel=0.04)
    assert {each["id"]: each["reason"] for each in run["not_checked"]} == dict.fromkeys(
        ("warm-restart", "cold-start", "answers"), "deselected"
    )

    # the curve of the two: 390 W is a third faster, and no other level is within 5 % of it
    curve = run["power_curve"]
    assert [(each["power_w"], each["min_tok_s"], each["held_by"]) for each in curve["points"]] == [
        (250.0, 42.0, "power cap"),
        (390.0, 55.0, "power cap"),
    ]
    assert (curve["fastest_w"], curve["suggested_w"], curve["key"]["nvlink"]) == (390.0, 390.0, ["0-1: 4", "2-3: 4"])
    assert "power curve: decode of 1 stream, NVLink 0-1 and 2-3" in done.stdout
    assert "suggested cap: 390 W" in done.stdout
    assert 'id="sg-chart-curve"' in next((tmp_path / "reports").glob("*/report.html")).read_text()
    assert len(list((tmp_path / "reports" / "power-curves").rglob("*.json"))) == 1

    cases = {case.get("name"): case for case in ElementTree.parse(junit).getroot().iter("testcase")}
    case = cases["test_decode_throughput[390W]"]
    properties = {each.get("name"): each.get("value") for each in case.iter("property")}
    assert properties["sglang.check"] == "decode-throughput"
    assert properties["sglang.verdict"] == "pass"
    assert properties["sglang.power_w"] == "390.0"
    assert properties["sglang.limit"] == "55.0"
    assert float(properties["sglang.measured.decode_tok_s"] or 0) == pytest.approx(rates[390.0], rel=1e-4)
    assert not list(case.iter("error"))
