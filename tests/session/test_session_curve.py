"""The power curve's store: points of this run and of equal earlier ones; foreign, broken and faulty ones are passed over."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.judge.throttling import Worked
from pytest_sglang.record.run import Run
from pytest_sglang.record.values import Round, Throughput
from pytest_sglang.rig.model import Rig, ServerPromise, ThroughputRow
from pytest_sglang.session import curve as session_curve
from pytest_sglang.session.curve import PowerCurve
from pytest_sglang.session.options import RunOptions

CAPPED = {"sw_power_cap": 1.0}


def throughput(rate: float, *, streams: int = 1, failed: int = 0) -> Throughput:
    rounds = tuple(
        Round(index=n, begin_s=n, end_s=n + 3.0, decode_tok_s=rate, end_to_end_tok_s=rate, aggregate_tok_s=rate,
              output_tokens=128, joules=3000.0, joules_error=30.0)
        for n in range(5)
    )  # fmt: skip
    return Throughput(
        streams=streams, rounds=rounds, decode_tok_s=rate, ci_low=rate * 0.99, ci_high=rate * 1.01, confidence=0.99, failed=failed
    )


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], int]:
    """Active links by pair, as they are found; the test may change them."""
    found = {(0, 1): 4, (2, 3): 4, (4, 5): 4}
    monkeypatch.setattr("pytest_sglang.gpu.links.read", lambda nvml: SimpleNamespace(pairs=found))
    return found


def run_of(folder: Path, run_id: str, *, model: str = "m", version: str = "0.5.11", faults: tuple[str, ...] = ()) -> Any:
    """A deployment as far as a curve looks at it."""
    row = ThroughputRow(power_w=250.0, nvlink=None, streams=1, quantity="decode", min_tok_s=42.0, target_tok_s=45.0)
    server = {"version": version, "arguments": {"model_path": model, "tp_size": 4}, "packages": {"torch": "2.9"}}
    kept: dict[str, Any] = {}
    return SimpleNamespace(
        rig=Rig(name="my rig / 1", path=Path("rig.toml"), server=ServerPromise(url="http://127.0.0.1:1"), throughput=(row,)),
        options=RunOptions(rootdir=folder, report_dir=folder, faults=faults),
        hardware=SimpleNamespace(serving=[SimpleNamespace(index=n, name="RTX 3090") for n in range(4)], nvml=None),
        worked={},
        recorder=SimpleNamespace(
            run=Run(
                run_id=run_id, started=f"2026-11-2{run_id[-1]}", simulated=True, environment={"server": server, "driver": "580"}
            ),
            power_curve=kept.update,
        ),
        progress=lambda text: kept.setdefault("told", []).append(text),
        kept=kept,
    )


def measured(folder: Path, run_id: str, rates: dict[float, float], **more: Any) -> dict[str, Any]:
    deployment = run_of(folder, run_id, **more)
    curve = PowerCurve(deployment)
    for level, rate in rates.items():
        deployment.worked[level] = (Worked(label="GPU 0", seconds=15.0, reasons=CAPPED, sm_mhz=975.0, end_c=60.0),)
        curve.add(level, throughput(rate))
    found: dict[str, Any] = deployment.kept
    return found


def levels(curve: dict[str, Any]) -> dict[float, str]:
    return {point["power_w"]: point["run_id"] for point in curve["points"]}


def test_a_sweep_becomes_points_with_their_promise_and_a_file(tmp_path: Path, links: dict[tuple[int, int], int]) -> None:
    curve = measured(tmp_path, "run-1", {250.0: 43.0, 300.0: 53.0})
    point = curve["points"][0]
    assert {name: point[name] for name in ("power_w", "tok_s", "min_tok_s", "target_tok_s", "held_by", "cap_pct", "sm_mhz")} == {
        "power_w": 250.0,
        "tok_s": 43.0,
        "min_tok_s": 42.0,
        "target_tok_s": 45.0,
        "held_by": "power cap",
        "cap_pct": 100.0,
        "sm_mhz": 975.0,
    }
    assert point["j_per_token"] == pytest.approx(3000 / 128, rel=1e-4)
    assert point["tok_s_per_w"] == pytest.approx(128 / 3000, rel=1e-4)
    assert point["mean_w"] == 1000.0
    assert curve["points"][1]["min_tok_s"] is None
    assert curve["key"]["nvlink"] == ["0-1: 4", "2-3: 4"]
    assert curve["suggested_w"] == 300.0
    (file,) = (tmp_path / "power-curves").rglob("*.json")
    assert file.parent.name == "my-rig-1"
    assert len(json.loads(file.read_text())["points"]) == 2


def test_earlier_runs_fill_in_and_the_newest_of_them_counts(tmp_path: Path, links: dict[tuple[int, int], int]) -> None:
    measured(tmp_path, "run-1", {200.0: 29.0, 350.0: 50.0})
    measured(tmp_path, "run-2", {350.0: 55.9})
    assert levels(measured(tmp_path, "run-3", {250.0: 43.0})) == {200.0: "run-1", 250.0: "run-3", 350.0: "run-2"}


def test_other_engines_models_links_and_faults_are_other_curves(tmp_path: Path, links: dict[tuple[int, int], int]) -> None:
    measured(tmp_path, "run-1", {350.0: 55.9}, version="0.5.12")
    measured(tmp_path, "run-2", {350.0: 55.9}, model="another")
    measured(tmp_path, "run-3", {350.0: 55.9}, faults=("slow-decode",))
    links[(2, 3)] = 3
    measured(tmp_path, "run-4", {350.0: 55.9})
    links[(2, 3)] = 4
    assert levels(measured(tmp_path, "run-5", {250.0: 43.0})) == {250.0: "run-5"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "points": [{"power_w": "x"}]}', "\0\0"])
def test_broken_and_foreign_files_are_passed_over(tmp_path: Path, links: dict[tuple[int, int], int], text: str) -> None:
    measured(tmp_path, "run-1", {200.0: 29.0})
    (tmp_path / "power-curves" / "my-rig-1" / "other.json").write_text(text)
    (tmp_path / "power-curves" / "my-rig-1" / "folder.json").mkdir()
    assert levels(measured(tmp_path, "run-2", {250.0: 43.0})) == {200.0: "run-1", 250.0: "run-2"}


def test_a_level_at_which_heat_held_a_card_is_shown_and_not_kept(tmp_path: Path, links: dict[tuple[int, int], int]) -> None:
    deployment = run_of(tmp_path, "run-1")
    hot = Worked(label="GPU 2", seconds=15.0, reasons={"sw_thermal_slowdown": 0.8, "sw_power_cap": 0.2})
    deployment.worked[250.0] = (hot,)
    PowerCurve(deployment).add(250.0, throughput(32.0))
    (point,) = deployment.kept["points"]
    assert (point["faulty"], point["held_by"]) == (True, "sw thermal (GPU 2, 80 %)")
    assert not (tmp_path / "power-curves").exists()


def test_what_is_no_point(tmp_path: Path, links: dict[tuple[int, int], int]) -> None:
    deployment = run_of(tmp_path, "run-1")
    curve = PowerCurve(deployment)
    curve.add(None, throughput(43.0))
    curve.add(250.0, throughput(43.0, failed=1))
    deployment.hardware = None
    curve.add(250.0, throughput(43.0))
    assert deployment.kept == {}


def test_of_several_stream_counts_the_one_with_most_levels_is_shown(tmp_path: Path, links: dict[tuple[int, int], int]) -> None:
    deployment = run_of(tmp_path, "run-1")
    curve = PowerCurve(deployment)
    for level, streams in ((250.0, 1), (250.0, 8), (300.0, 8)):
        curve.add(level, throughput(40.0 + streams, streams=streams))
    assert deployment.kept["key"]["streams"] == 8
    assert len(deployment.kept["points"]) == 2


def test_a_report_directory_that_cannot_be_written_costs_no_measurement(
    tmp_path: Path, links: dict[tuple[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session_curve.records, "write_atomic", full)
    found = measured(tmp_path, "run-1", {250.0: 43.0})
    assert "No space left on device" in found["told"][0]
    assert levels(found) == {250.0: "run-1"}
