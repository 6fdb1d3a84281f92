"""Keeps run.json true at every moment: after each check it is written anew, whole, and says inconclusive until the session has ended."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec

from pytest_sglang.judge import samples
from pytest_sglang.record import run as records
from pytest_sglang.record.answers import Answers
from pytest_sglang.record.clock import Clock
from pytest_sglang.record.run import Check, NotChecked, Run
from pytest_sglang.record.values import Finding, Startup, Throughput
from pytest_sglang.session import earlier

NOT_AS_IT_WAS = frozenset({"not-put-back", "did-not-come-back", "survivor"})
"""Findings after which a run cannot pass."""


class Recorder:
    """One run's record in ``folder``."""

    def __init__(self, folder: Path, run: Run, clock: Clock) -> None:
        self.folder, self.run, self._clock = folder, run, clock
        self._began = clock.time()
        self._ended: float | None = None
        self.began_wall = time.time()
        """Epoch seconds of the machine's clock: the zero of the power chart."""

    def _set(self, **fields: Any) -> None:
        self.run = msgspec.structs.replace(self.run, **fields)

    def add(self, check: Check) -> None:
        """Keep a check's verdict; a later one of the same id and power level replaces it."""
        others = tuple(each for each in self.run.checks if (each.id, each.power_w) != (check.id, check.power_w))
        self._set(checks=(*others, check))

    def keys(self) -> set[tuple[str, float | None]]:
        """What has a verdict already."""
        return {(check.id, check.power_w) for check in self.run.checks}

    def verdict_of(self, check_id: str, power_w: float | None) -> str | None:
        """Verdict of a check at this power level (or of the one that has none); None = it was not made."""
        for level in (power_w, None):
            for check in self.run.checks:
                if check.id == check_id and check.power_w == level:
                    return check.verdict
        if power_w is None:
            verdicts = [check.verdict for check in self.run.checks if check.id == check_id]
            return next((each for each in ("fail", "inconclusive", "pass") if each in verdicts), None)
        return None

    def not_checked(self, reasons: dict[tuple[str, float | None], str]) -> None:
        """Promised checks that were not made, with their reasons; those with a verdict are left out."""
        done = self.keys()
        self._set(
            not_checked=tuple(
                NotChecked(check_id if power is None else f"{check_id} at {power:g} W", reason)
                for (check_id, power), reason in reasons.items()
                if (check_id, power) not in done
            )
        )

    def not_promised(self, ids: tuple[str, ...]) -> None:
        """Standard checks that exist, and that this rig file does not promise."""
        self._set(not_promised=ids)

    def environment(self, facts: dict[str, Any]) -> None:
        """The fingerprint, redacted."""
        self._set(environment=facts)

    def since_pass(self, found: dict[str, Any]) -> None:
        """The newest earlier pass of this rig, and what has changed since."""
        self._set(since_pass=found)

    def logs(self, excerpts: tuple[dict[str, Any], ...]) -> None:
        """The excerpts of logs that lie in this run's folder."""
        self._set(logs=excerpts)

    def as_found(self, state: dict[str, Any]) -> None:
        """The rig before anything was done."""
        self._set(as_found=state)

    def as_left(self, state: dict[str, Any]) -> None:
        """The rig after everything was put back, read back."""
        self._set(as_left=state)

    def topology(self, seen: dict[str, Any]) -> None:
        """Cards, links and the server's place on them, as ``layout`` reads them; the newest reading stands.

        Where a later one no longer sees the server, it keeps where the server was seen. ``first_paths`` are those of
        the first reading, where they have changed since.
        """
        known = self.run.topology
        if "cards" in known:
            if "cards" not in seen:
                seen = {**known, "not_read_again": seen.get("unreadable")}
            elif "gpus" not in seen["serving"] and "gpus" in known["serving"]:
                seen = {**seen, "serving": known["serving"]}
            first = known.get("first_paths", known["paths"])
            seen = {**seen, "first_paths": first} if first != seen["paths"] else seen
        self._set(topology=records.plain(seen))

    def startup(self, label: str, startup: Startup, budget_s: float | None) -> None:
        """A start that was made or judged, for the time-line chart."""
        item = {"label": label, "startup": records.plain(startup), "budget_s": budget_s}
        kept = tuple(each for each in self.run.startups if each["label"] != label)
        self._set(startups=(*kept, item))

    def throughput(
        self, label: str, power_w: float | None, promise: dict[str, Any], throughput: Throughput, *, process: str | None = None
    ) -> None:
        """A measurement, for the chart and for later comparison. ``process``: the one that it was made on (``serving.Serving.name``)."""
        told = records.plain(throughput)
        item = {
            "label": label,
            "power_w": power_w,
            **promise,
            "process": process,
            "throughput": told,
            "samples": samples.short(told),
        }
        self._set(throughputs=(*self.run.throughputs, item))

    def power_series(self, series: dict[str, Any]) -> None:
        """Watts over time per GPU, for the chart; later windows are appended."""
        if not self.run.power_series:
            self._set(power_series=records.plain(series))
            return
        old, new = self.run.power_series, records.plain(series)
        gpus = {
            uuid: {**gpu, **_joined(gpu, len(old["t"]), new["gpus"].get(uuid, {}), len(new["t"]))}
            for uuid, gpu in old["gpus"].items()
        }
        self._set(power_series={"t": old["t"] + new["t"], "gpus": gpus, "windows": old["windows"] + new["windows"]})

    def power_curve(self, curve: dict[str, Any]) -> None:
        """Speed and energy over power levels, as far as they are measured."""
        self._set(power_curve=curve)

    def answers(self, answers: Answers) -> None:
        """What the fixed prompts were answered after one start."""
        self._set(answers=(*self.run.answers, records.plain(answers)))

    def findings(self, findings: tuple[Finding, ...]) -> None:
        """Something noticed outside any check."""
        self._set(findings=(*self.run.findings, *(each for each in findings if each not in self.run.findings)))

    def raw(self, request: dict[str, Any]) -> None:
        """One request's raw events, a line of rounds.jsonl."""
        with (self.folder / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(records.plain(request), ensure_ascii=False) + "\n")

    def verdict(self, *, require_all: bool) -> records.Verdict:
        """Of everything so far; a partial pass under require_all, and a run without any check, is inconclusive."""
        verdict = records.verdict_of(self.run.checks)
        if verdict != "pass":
            return verdict
        # a rig that is not as it was found is no pass, however good its numbers
        left = any(finding.kind in NOT_AS_IT_WAS for finding in self.run.findings)
        return "inconclusive" if left or (require_all and self.run.not_checked) else "pass"

    def stop_clock(self) -> None:
        """Note the end of the run, while the rig's clock is still there."""
        if self._ended is None:
            self._ended = self._clock.time()

    def finish(self, exit_code: int, *, interrupted: bool) -> None:
        """Close the record: only now can it say pass."""
        self.stop_clock()
        now = self._ended or self._began
        verdict = {0: "pass", 1: "fail"}.get(exit_code, "inconclusive")
        self._set(
            earlier_starts=earlier.starts(self.folder.parent, self.run),
            finished=records.utc(now),
            duration_s=round(now - self._began, 3),
            wall_s=round(time.time() - self.began_wall, 3),
            exit_code=exit_code,
            interrupted=interrupted,
            verdict=verdict,
        )

    def write(self) -> None:
        """Write run.json (write, then rename)."""
        records.write(self.run, self.folder)


def _joined(old: dict[str, Any], before: int, new: dict[str, Any], added: int) -> dict[str, Any]:
    """One card's readings of two windows, one value a moment: a limit that stands for a whole window is spread over it."""
    joined: dict[str, Any] = {}
    for name in ("w", "c", "mhz", "held", "limit_w"):
        if name in old or name in new:
            joined[name] = _spread(old.get(name), before) + _spread(new.get(name), added)
    return joined


def _spread(values: Any, count: int) -> list[Any]:
    return list(values) if isinstance(values, list) else [values] * count
