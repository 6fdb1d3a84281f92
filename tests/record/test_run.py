"""run.json: written whole or not at all, plain types, read back as it was."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import msgspec
import pytest

from pytest_sglang.record import run as records
from pytest_sglang.record.run import Check, Limit, Measurement, NotChecked, RecordError, Run
from pytest_sglang.record.values import Finding


def a_check(check_id: str = "ready", verdict: str = "pass", **fields: object) -> Check:
    return msgspec.convert({"id": check_id, "promise": "Ready means ready.", "verdict": verdict, **fields}, Check)


def a_run(**fields: object) -> Run:
    check = Check(
        id="decode-throughput",
        promise="Holds its rate.",
        verdict="fail",
        power_w=250.0,
        measured={"decode_tok_s": Measurement(36.1, "tok/s"), "model": Measurement("/models/ä", "")},
        limit=Limit(">=", 38.0, "tok/s"),
        cause="NVLink is missing",
        findings=(Finding("nvlink", "fail", "GPU 2-3", "no link", "reseat it", "nvlink"),),
    )
    values: dict[str, object] = {
        "run_id": "2026-11-24T01-53-00Z-250W-ab12",
        "started": records.utc(1795485180.0),
        "simulated": True,
        "checks": (check,),
        "not_checked": (NotChecked("cold-start", "no --sglang-allow-cold"),),
        "power_levels_w": (250.0,),
        "environment": {"gpus": [{"index": 0}], "driver": "580"},
    }
    return Run(**{**values, **fields})  # type: ignore[arg-type]


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = a_run()
    path = records.write(run, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "run.json"
    assert records.read(path) == run
    assert records.read(path.parent) == run


def test_the_file_has_plain_types_and_the_schema(tmp_path: Path) -> None:
    written = json.loads(records.write(a_run(), tmp_path).read_text(encoding="utf-8"))
    assert (written["schema"], written["finished"], written["verdict"]) == (1, None, "inconclusive")
    assert written["started"] == "2026-11-24T01:53:00.000Z"
    assert written["checks"][0]["measured"]["decode_tok_s"] == {"value": 36.1, "unit": "tok/s"}
    assert written["not_checked"] == [{"id": "cold-start", "reason": "no --sglang-allow-cold"}]
    assert "ä" in (tmp_path / "run.json").read_text(encoding="utf-8")


def test_nan_and_infinity_become_null_wherever_they_stand(tmp_path: Path) -> None:
    check = a_check(measured={"ready_s": {"value": math.nan, "unit": "s"}})
    run = a_run(checks=(check,), duration_s=math.inf, power_series={"w": [1.0, -math.inf], "by": {3: math.nan}})
    text = records.write(run, tmp_path).read_text()
    assert not re.search(r"\b(NaN|-?Infinity)\b", text)
    written = json.loads(text)
    assert written["checks"][0]["measured"]["ready_s"]["value"] is None
    assert (written["duration_s"], written["power_series"]) == (None, {"w": [1.0, None], "by": {"3": None}})


def test_a_write_that_breaks_off_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write(a_run(), tmp_path)
    before = (tmp_path / "run.json").read_bytes()

    def no_rename(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", no_rename)
    with pytest.raises(OSError, match="disk full"):
        records.write(a_run(run_id="other"), tmp_path)
    assert (tmp_path / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_new_file_is_whole_before_it_takes_the_old_ones_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    rename = os.replace

    def looking(source: str, target: Path) -> None:
        seen.append(Path(source).read_text())
        rename(source, target)

    monkeypatch.setattr(os, "replace", looking)
    records.write(a_run(), tmp_path)
    assert json.loads(seen[0])["run_id"] == "2026-11-24T01-53-00Z-250W-ab12"
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory (give a run folder or its run.json)"),
        ('{"schema": 2}', "schema 2, this version reads 1"),
        ("{}", "schema None, this version reads 1"),
        ("[]", "not a run.json: "),
        ("{", "not a run.json: "),
        ('{"schema": 1}', "not a run.json: "),
        ("\x00", "not a run.json: "),
    ],
)
def test_a_file_that_is_no_run_is_told_by_its_path(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecordError) as caught:
        records.read(path)
    assert str(caught.value).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "inconclusive"),
        (["pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
    ],
)
def test_fail_beats_inconclusive_beats_pass(verdicts: list[str], expected: str) -> None:
    assert records.verdict_of(tuple(a_check(f"c{index}", verdict) for index, verdict in enumerate(verdicts))) == expected


def test_an_expected_failure_does_not_fail_the_run() -> None:
    assert records.verdict_of((a_check("a", "fail", expected_failure=True), a_check("b"))) == "pass"


def test_a_run_that_was_killed_says_not_pass(tmp_path: Path) -> None:
    records.write(a_run(checks=(a_check("a"), a_check("b"), a_check("c"))), tmp_path)
    assert records.read(tmp_path).verdict == "inconclusive"
    assert records.read(tmp_path).finished is None
