"""Named baselines: a run folder that carries a name, and this run judged against it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pytest_sglang.judge.verdict import Judgement, inconclusive
from pytest_sglang.record import run as records
from pytest_sglang.record.run import Limit, Measurement, Run
from pytest_sglang.record.values import Finding
from pytest_sglang.session import compared_changes, comparison, store
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.options import BaselineWish

if TYPE_CHECKING:
    from pytest_sglang.session.compared import Quantity
    from pytest_sglang.session.compared_answers import AnswersComparison
    from pytest_sglang.session.comparison import Comparison
    from pytest_sglang.session.deployment import Deployment

DEFAULT = "default"
OLD_DAYS = 90.0
"""A baseline older than this is named as old: drivers, dust and firmware have moved since."""


def parse(text: str | None) -> BaselineWish | None:
    """``save``, ``save=NAME``, ``compare``, ``compare=NAME``. Raises Refused."""
    if text is None:
        return None
    what, _, name = text.partition("=")
    name = name or DEFAULT
    if what not in ("save", "compare") or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise Refused(
            f"--sglang-baseline={text}: write save, compare, save=NAME or compare=NAME (e.g. --sglang-baseline=compare=before-upgrade)"
        )
    return BaselineWish(save=what == "save", name=name)


def names_of(folder: Path) -> list[str]:
    """Names that a run folder carries as a baseline."""
    try:
        return [line.strip() for line in (folder / store.KEPT).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError:
        return []


def find(reports: Path, rig: str, name: str, *, simulated: bool = False) -> store.Stored | None:
    """The baseline of this name and rig, a simulated run's or a real one's; None = there is none."""
    found = [
        each
        for each in store.runs(reports)[0]
        if (each.rig_name, each.simulated) == (rig, simulated) and name in names_of(Path(each.folder))
    ]
    return found[-1] if found else None


def save(folder: Path, run: Run, name: str) -> str:
    """Give a finished run the name, taking it from an older one of the rig; the line to print. A run that did not pass is not taken."""
    unfit = _unfit(run)
    if unfit:
        return f"baseline {name!r} not saved: the run {unfit}"
    rig = str(run.rig.get("name") or "unnamed rig")
    old = find(folder.parent, rig, name, simulated=run.simulated)
    records.write_atomic(folder / store.KEPT, "".join(f"{each}\n" for each in dict.fromkeys([*names_of(folder), name])))
    if old is not None and Path(old.folder).resolve() != folder.resolve():
        left = [each for each in names_of(Path(old.folder)) if each != name]
        path = Path(old.folder) / store.KEPT
        if left:
            records.write_atomic(path, "".join(f"{each}\n" for each in left))
        else:
            path.unlink(missing_ok=True)
    return f"baseline {name!r} saved: {folder.name}"


def _unfit(run: Run) -> str:
    """Why a run is no baseline; empty where it may be one."""
    if run.finished is None or run.interrupted:
        return "was interrupted: a part of it is missing"
    return "" if run.verdict == "pass" else f"is {run.verdict}, not a pass"


def judge(deployment: Deployment, name: str) -> list[Judgement]:
    """This run's measurements against the baseline: refused where their keys differ in more than one thing."""
    return against(deployment.options.report_dir, deployment.recorder.run, deployment.rig.name, name)


def against(reports: Path, run: Run, rig: str, name: str) -> list[Judgement]:
    """``run``, finished or not, against the baseline of this name in ``reports``."""
    stored = find(reports, rig, name, simulated=run.simulated)
    if stored is None:
        return [
            inconclusive(
                f"no baseline {name!r} of {rig} in {reports.name}/ (save one: --sglang-baseline=save={name})",
                "no baseline",
            )
        ]
    try:
        before = store.whole(stored)
    except records.RecordError as error:
        return [inconclusive(f"baseline {name!r} cannot be read: {error}", "no baseline")]
    unfit = _unfit(before)
    if unfit:
        save_new = f"after a pass, save a new one: --sglang-baseline=save={name}"
        return [inconclusive(f"not compared with {before.run_id}: that run {unfit} ({save_new})", "no baseline")]
    found = comparison.compare([before], [run], store.runs(reports)[0])
    changes = [each for each in found.changed if each.kind == "change"]
    if found.refused or (changes and found.under_test is None):
        unlike = [each for each in found.changed if each.kind == "condition"] if found.refused else found.changed
        reason = "its conditions differ" if found.refused else "more than one thing differs"
        told = compared_changes.listed(unlike)
        return [inconclusive(f"not compared with {before.run_id}: {reason}: {told}", "not comparable")]
    said = [_judgement(each, found, before) for each in found.quantities if each.judged]
    if said and found.answers is not None and found.answers.verdict is not None:
        said.append(_answers(found.answers, before))
    if not said:
        return [inconclusive(f"this run measured nothing that {before.run_id} measured too", "nothing to compare")]
    return [msgspec.structs.replace(said[0], findings=_findings(found, before, run)), *said[1:]]


def _judgement(each: Quantity, found: Comparison, before: Run) -> Judgement:
    change = each.change
    if change is None:
        return inconclusive(f"{each.name}: no interval")
    quantity = f"change_pct:{each.name}"
    measured = {quantity: Measurement(None if change.change is None else round(change.change * 100, 3), "%")}
    if change.low is not None and change.high is not None:
        measured[f"{quantity}:low"] = Measurement(round(change.low * 100, 3), "%")
        measured[f"{quantity}:high"] = Measurement(round(change.high * 100, 3), "%")
    tested = f" ({found.under_test} differs)" if found.under_test else ""
    message = f"{each.name} against {before.run_id}{tested}: {change.why}"
    return Judgement(
        verdict=change.verdict,
        message=message,
        quantity=quantity,
        measured=measured,
        limit=Limit(">=", round(-each.max_loss * 100, 3), "%"),
        cause=(f"{found.under_test} is the one thing that differs" if found.under_test else "nothing that is recorded differs")
        if change.verdict == "fail"
        else None,
        inconclusive_because=change.why if change.verdict == "inconclusive" else None,
    )


def _answers(found: AnswersComparison, before: Run) -> Judgement:
    message = f"answers against {before.run_id}: {found.text}"
    return Judgement(
        verdict=found.verdict or "inconclusive",
        message=message,
        measured={"answers:equal": Measurement(found.equal, "count"), "answers:tokens": Measurement(found.tokens, "count")},
        cause="the same prompts get other answers" if found.verdict == "fail" else None,
        inconclusive_because=found.text if found.verdict == "inconclusive" else None,
    )


def _findings(found: Comparison, before: Run, run: Run) -> tuple[Finding, ...]:
    told = [Finding("baseline-note", "warn", before.run_id, note) for note in found.notes]
    days = (datetime.fromisoformat(run.started) - datetime.fromisoformat(before.started)).total_seconds() / 86400
    if days > OLD_DAYS:
        told.append(
            Finding("baseline-old", "warn", before.run_id, f"the baseline is {days:.0f} days old", "save a new one after a pass")
        )
    return tuple(told)
