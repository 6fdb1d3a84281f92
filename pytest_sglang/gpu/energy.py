"""Energy windows: start the sampler's process, mark beginnings and ends, read joules out of its file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.integral import (
    GAP,
    SERIES_POINTS,
    ReasonsHeld,
    Sample,
    SlowSample,
    average_w,
    integrate,
    nearest,
    reason_shares,
    reasons_held,
    series,
    slow_series,
)
from pytest_sglang.gpu.samples import SampleFile
from pytest_sglang.record.values import Energy

__all__ = ["EnergyWindow", "Sample", "SlowSample", "Window", "average_w", "integrate", "nearest", "reason_shares", "series"]

BEYOND_S = 0.25
"""How far samples must reach beyond a window's end: two steps of the energy counter."""
START_S = 15.0
WAIT_S = 2.0
FAST_HZ = 20.0
SLOW_HZ = 2.0


class Window:
    """A stretch of time inside an EnergyWindow; ``energies`` (by UUID) is there once it has ended."""

    def __init__(self, begin_s: float) -> None:
        self.begin_s = begin_s
        self.end_s: float | None = None
        self.energies: dict[str, Energy] = {}

    @property
    def joules(self) -> float | None:
        """Joules of all cards together; None where one of them has none."""
        return _sum(each.joules for each in self.energies.values())

    @property
    def mean_w(self) -> float | None:
        """Mean watts of all cards together; None where one of them has none."""
        return _sum(each.mean_w for each in self.energies.values())

    @property
    def invalid_because(self) -> str | None:
        """Why there is no sum: the first card's reason."""
        return next((f"{uuid}: {each.invalid_because}" for uuid, each in self.energies.items() if each.invalid_because), None)


def _sum(values: Iterable[float | None]) -> float | None:
    total, any_of_them = 0.0, False
    for value in values:
        if value is None:
            return None
        total, any_of_them = total + value, True
    return total if any_of_them else None


class EnergyWindow(Window):
    """Samples these cards while it is entered; inside and afterwards it tells the energy of any stretch of that time.

    Board power, not the wall. ``context``: how the sampler's process opens the cards: ``{"nvml": "real"}``, or ``{"nvml":
    "package.module:function", "argument": ...}`` for a stand-in. ``path``: where to keep the raw samples (None: a temporary file,
    gone at the end). A sampler that cannot run makes every energy invalid with the reason and raises nothing.
    """

    def __init__(
        self,
        cards: Sequence[Card],
        context: Mapping[str, Any] | None = None,
        *,
        path: Path | None = None,
        fast_hz: float = FAST_HZ,
        slow_hz: float = SLOW_HZ,
    ) -> None:
        super().__init__(0.0)
        opener = (context or {}).get("nvml", "real")
        self._uuids = tuple(card.uuid for card in cards)
        self._kept = path
        self._folder: Path | None = None
        self._asked: dict[str, Any] = {
            "opener": None if opener == "real" else opener,
            "argument": (context or {}).get("argument"),
            "uuids": list(self._uuids),
            "fast_hz": fast_hz,
            "slow_hz": slow_hz,
        }
        self._file = SampleFile(path or Path("samples.jsonl"))
        self._process: subprocess.Popen[bytes] | None = None
        self.failure: str | None = None
        """Why there are no samples, or no more of them; None = all is well."""

    # --- life ------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> EnergyWindow:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        self.begin_s = time.time()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end_s = time.time()
        try:
            # an interrupted run has no use for the last quarter of a second, and must not be held up by it
            self.energies = self.between(self.begin_s, self.end_s, wait=kind is None)
        finally:
            self._stop()

    def _start(self) -> None:
        if self._kept is None:
            self._folder = Path(tempfile.mkdtemp(prefix="pytest-sglang-power-"))
            self._file = SampleFile(self._folder / "samples.jsonl")
        else:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
        self._file.path.unlink(missing_ok=True)
        asked = json.dumps({**self._asked, "path": str(self._file.path)})
        # the child finds this very package, wherever it was imported from, and the modules that this process can import
        paths = [str(Path(__file__).parents[2]), *(each for each in sys.path if each)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        command = [sys.executable, "-m", "pytest_sglang.gpu.sampler", asked]
        with self._errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr, env=environment
            )
        deadline = time.monotonic() + START_S
        while True:
            ended = self._process.poll()
            self._file.update()
            if self._file.newest_s > 0:
                return
            if ended is not None or time.monotonic() > deadline:
                silent = f"silent for {START_S:g} s" if ended is None else f"exit code {ended}"
                self.failure = f"the power sampler did not begin: {self._file.failure or self._last_error() or silent}"
                self._stop()
                return
            time.sleep(0.01)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()  # stuck inside a driver call
                process.wait()
        try:
            self._file.update()
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            elif self._kept is not None and self._errors.exists() and self._errors.stat().st_size == 0:
                self._errors.unlink()

    @property
    def _errors(self) -> Path:
        return self._file.path.with_suffix(".err")

    def _last_error(self) -> str:
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    @property
    def pid(self) -> int | None:
        """Process id of the sampler while it runs."""
        return self._process.pid if self._process is not None else None

    # --- what was measured -------------------------------------------------------------------------------------------------

    @contextmanager
    def window(self) -> Iterator[Window]:
        """A stretch inside: read ``.energies`` of the yielded Window afterwards."""
        part = Window(time.time())
        try:
            yield part
        finally:
            part.end_s = time.time()
            part.energies = self.between(part.begin_s, part.end_s)

    def between(self, begin_s: float, end_s: float, *, wait: bool = True) -> dict[str, Energy]:
        """Energy of every card, by UUID, between two epoch times; waits up to 2 s for samples beyond the end."""
        self._reach(end_s + BEYOND_S if wait else 0.0)
        return {uuid: self._energy(uuid, begin_s, end_s) for uuid in self._uuids}

    def _energy(self, uuid: str, begin_s: float, end_s: float) -> Energy:
        file = self._file
        if uuid not in file.fast:
            why = self.failure or f"{GAP}: the sampler does not see this card"
            return Energy(gpu=uuid, joules=None, mean_w=None, peak_w=None, invalid_because=why)
        lost_at_s = file.lost[uuid][0] if uuid in file.lost else None
        why_missing = "; ".join(f"{name}: {reason}" for name, reason in file.missing[uuid].items())
        return integrate(file.fast[uuid], begin_s, end_s, gpu=uuid, lost_at_s=lost_at_s, why_missing=why_missing)

    def average_w(self, begin_s: float, end_s: float) -> dict[str, float | None]:
        """What the driver's one-second average says per card: for showing beside the energy, never instead of it."""
        self._reach(end_s)
        return {uuid: average_w(samples, begin_s, end_s) for uuid, samples in self._file.fast.items()}

    def reason_shares(self, begin_s: float, end_s: float) -> dict[str, dict[str, float]]:
        """Per card: share of the time in which each reason limited the clocks; empty = not readable."""
        self._reach(end_s)
        return {uuid: reason_shares(samples, begin_s, end_s) for uuid, samples in self._file.slow.items()}

    def reasons_held(self, begin_s: float, end_s: float) -> dict[str, ReasonsHeld]:
        """Per card: for how much of the time it was read what limits the clocks, and for how long each reason did."""
        self._reach(end_s)
        return {uuid: reasons_held(samples, begin_s, end_s) for uuid, samples in self._file.slow.items()}

    def slow(self, begin_s: float, end_s: float) -> dict[str, list[SlowSample]]:
        """Temperatures, clocks, reasons and PCIe links per card between two epoch times."""
        self._reach(end_s)
        return {uuid: [each for each in samples if begin_s <= each.t_s <= end_s] for uuid, samples in self._file.slow.items()}

    def temperature_at(self, t_s: float, uuids: Iterable[str] | None = None) -> float | None:
        """Degrees Celsius of the warmest of these cards (default all) at an epoch time; None = not readable."""
        self._reach(t_s)
        wanted = self._uuids if uuids is None else tuple(uuids)
        near = [nearest(self._file.slow[uuid], t_s) for uuid in wanted if uuid in self._file.slow]
        return max(
            (float(each.temperature_c) for each in near if each is not None and each.temperature_c is not None), default=None
        )

    def series(
        self,
        labels: Mapping[str, Mapping[str, Any]] | None = None,
        marks: Sequence[tuple[float, float, str]] = (),
        *,
        zero_s: float | None = None,
        points: int = SERIES_POINTS,
    ) -> dict[str, Any]:
        """Watts over this window as run.json's ``power_series``, at most ``points`` a card: ``w``, and ``c`` (degrees Celsius), ``mhz``
        (SM clock) and ``held`` (what held the clocks, "" = nothing) at the same moments; None = not read.

        Times and ``marks`` (begin, end, label; epoch seconds) become seconds since ``zero_s`` (None: this window's begin);
        ``labels`` are added to the card's entry.
        """
        zero = self.begin_s if zero_s is None else zero_s
        end_s = self.end_s if self.end_s is not None else time.time()
        times, watts = series(self._file.fast, self.begin_s, end_s, points)
        return {
            "t": [round(each - zero, 3) for each in times],
            "gpus": {
                uuid: {**(labels or {}).get(uuid, {}), "w": values, **slow_series(self._file.slow.get(uuid, []), times)}
                for uuid, values in watts.items()
            },
            "windows": [[round(begin - zero, 3), round(end - zero, 3), label] for begin, end, label in marks],
        }

    @property
    def lost(self) -> dict[str, str]:
        """Cards that stopped answering, by UUID, with what to look for."""
        self._file.update()
        return {uuid: told for uuid, (_, told) in self._file.lost.items()}

    @property
    def missing(self) -> dict[str, dict[str, str]]:
        """Readings that a card does not give, by UUID: name and reason."""
        self._file.update()
        return self._file.missing

    def _reach(self, t_s: float) -> None:
        """Wait until samples reach ``t_s``, at most 2 s, and only while somebody makes them."""
        deadline = time.monotonic() + WAIT_S
        self._file.update()
        while self._file.newest_s < t_s and self._process is not None and time.monotonic() < deadline:
            ended = self._process.poll()
            if ended is not None:
                self.failure = f"the power sampler ended: {self._last_error() or f'exit code {ended}'}"
                return
            if len(self._file.lost) == len(self._file.uuids):
                return
            time.sleep(0.02)
            self._file.update()
