"""The newest earlier pass of the same rig in ``reports/``, and what has changed since; found without reading every run whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sglang.record import run as records
from pytest_sglang.record.run import Run
from pytest_sglang.session import beginnings, changed

if TYPE_CHECKING:
    from pytest_sglang.session.recorder import Recorder


def note(recorder: Recorder, report_dir: Path) -> None:
    """Keep in the record what has changed since the last pass; whatever lies in ``report_dir``, this never fails a run.

    Without an earlier pass the record says where one was looked for.
    """
    try:
        recorder.since_pass(of(report_dir, recorder.run) or {"looked_in": report_dir.name})
    except Exception as error:
        recorder.since_pass({"unreadable": f"{type(error).__name__}: {error}"})


def of(report_dir: Path, run: Run) -> dict[str, Any]:
    """``{"run_id", "started", "power_levels_w", "differences", "measured"}`` of the newest earlier pass; {} without one.

    A pass at the same power levels is preferred, however old. ``measured``: what each promise's limit was about, then.
    """
    best = last_pass(report_dir, run)
    if best is None:
        return {}
    return {
        "run_id": best.run_id,
        "started": best.started,
        "power_levels_w": list(best.power_levels_w),
        "differences": records.plain(changed.between(best, run)),
        "measured": records.plain(_measured(best)),
    }


def last_pass(report_dir: Path, run: Run) -> Run | None:
    """The newest earlier finished pass of the rig of ``run``, at the same power levels if there is one; broken files are passed over."""
    others: list[Path] = []
    for path in beginnings.newest_first(report_dir):
        if path.parent.name == run.run_id:
            continue
        try:
            begins = beginnings.read(path)
        except OSError:
            continue
        if not begins.may_be_of(run.rig.get("name"), run.simulated) or begins.verdict not in (None, "pass"):
            continue
        if begins.power_levels_w not in (None, list(run.power_levels_w)):
            others.append(path)
            continue
        found = _pass(path, run)
        if found is not None and found.power_levels_w == run.power_levels_w:
            return found
        if found is not None:
            others.append(path)
    return next((found for path in others if (found := _pass(path, run)) is not None), None)


def _pass(path: Path, run: Run) -> Run | None:
    try:
        found = records.read(path)
    except (records.RecordError, RecursionError):
        return None
    same = found.rig.get("name") == run.rig.get("name") and found.simulated == run.simulated
    passed = found.verdict == "pass" and found.finished is not None
    return found if same and passed and found.run_id != run.run_id and _earlier(found, run) else None


def _earlier(found: Run, run: Run) -> bool:
    """By the machine's time in the ids where both have one: a simulated rig's own clock runs ahead of it."""
    stamps = [beginnings.STAMP.match(each.run_id) for each in (found, run)]
    if stamps[0] is not None and stamps[1] is not None:
        return stamps[0][0] <= stamps[1][0]
    return found.started <= run.started


def _measured(run: Run) -> dict[str, Any]:
    """By id and power level: ``{"decode-throughput at 250 W": {"value": 43.4, "unit": "tok/s", "quantity": "decode_tok_s"}}``."""
    found = {}
    for check in run.checks:
        if check.quantity is not None and check.quantity in check.measured:
            name = check.id if check.power_w is None else f"{check.id} at {check.power_w:g} W"
            now = check.measured[check.quantity]
            found[name] = {"value": now.value, "unit": now.unit, "quantity": check.quantity}
    return found
