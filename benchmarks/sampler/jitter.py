"""What the power sampler costs and how evenly it samples, from its own file and from the kernel's account of its process."""

from __future__ import annotations

import json
import math
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil


class Cost:
    """CPU time of a process between enter and exit: seconds, and the share of one core."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.cpu_s = self.wall_s = 0.0

    def __enter__(self) -> Cost:
        self._begin = (self._spent(), time.monotonic())
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s = self._spent() - self._begin[0]
        self.wall_s = time.monotonic() - self._begin[1]

    def _spent(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    @property
    def share(self) -> float:
        """Of one core."""
        return self.cpu_s / self.wall_s


def ticks(samples: Path, begin_s: float, end_s: float) -> list[float]:
    """Epoch times of the sampler's fast readings (its first card's) inside a window."""
    found = []
    for line in samples.read_text(encoding="utf-8").splitlines():
        if line.startswith('["f"'):
            first = next((each for each in json.loads(line)[1:] if each is not None), None)
            if first is not None and begin_s <= first[0] <= end_s:
                found.append(float(first[0]))
    return found


def evenness(times: list[float], hz: float) -> dict[str, Any]:
    """Samples got and lost, and the distribution of the intervals in milliseconds.

    A sample counts as lost for every whole period that an interval is longer than one and a half.
    """
    period = 1.0 / hz
    intervals = sorted(after - before for before, after in pairwise(times))
    lost = sum(max(0, math.floor(each / period + 0.5) - 1) for each in intervals)
    expected = (times[-1] - times[0]) * hz + 1

    def percentile(share: float) -> float:
        return round(1000 * intervals[min(len(intervals) - 1, math.ceil(share * len(intervals)) - 1)], 2)

    return {
        "samples": len(times),
        "expected": round(expected, 1),
        "lost": lost,
        "interval_ms": {
            "median": percentile(0.5),
            "p95": percentile(0.95),
            "p99": percentile(0.99),
            "max": round(1000 * intervals[-1], 2),
        },
        "jitter_ms": round(1000 * statistics.pstdev(intervals), 3),
    }
