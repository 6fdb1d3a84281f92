"""Progress inside a phase of a start: tqdm's bars (captured batch sizes, loaded shards) and the shapes that Inductor tuned."""

from __future__ import annotations

import re

import msgspec

from pytest_sglang.record.values import Value
from pytest_sglang.server import versions

_BAR = re.compile(r"(?P<pct>\d{1,3})%(?: Completed)? ?\|(?:[^|]*\|)? *(?P<done>\d+)/(?P<total>\d+)(?: \[(?P<timing>[^\]]*))?")
_ITEM = re.compile(r"\(([^)]*?)(?: avail_mem=[^)]*)?\)")


class Inside(Value, frozen=True):
    """``done`` of ``total`` steps of a phase. ``item`` is the one in work ("bs=4"), ``tuned`` the number of shapes tuned meanwhile."""

    done: int = 0
    total: int = 0
    item: str = ""
    tuned: int = 0
    elapsed_s: float = 0.0
    """By the bar's own clock: between two stamps of the log it may be all that tells the time."""

    @property
    def text(self) -> str:
        """For a person: ``2/4 (bs=4), 7 shapes tuned``; "" where nothing is known."""
        parts = []
        if self.total:
            item = f" ({self.item})" if self.item and self.done < self.total else ""
            parts.append(f"{self.done}/{self.total}{item}")
        if self.tuned:
            parts.append(f"{self.tuned} shape{'' if self.tuned == 1 else 's'} tuned")
        return ", ".join(parts)


class Bars:
    """Collects the progress of every phase from the lines of one start, whatever stands between the states of a bar."""

    def __init__(self) -> None:
        self._newest: dict[str, Inside] = {}
        self._shapes: set[str] = set()

    def feed(self, text: str) -> None:
        """Take one line, or what is glued together in one."""
        if "AUTOTUNE" in text:
            self._shapes.update(versions.SHAPE.findall(text))
        if "%" not in text:
            return
        match = _BAR.search(text)
        if match is None:
            return
        label = text[: match.start()]
        phase = next((phase for phase, pattern in versions.BARS if pattern.search(label)), None)
        if phase is None:
            return
        item = _ITEM.search(label)
        elapsed_s = _seconds((match["timing"] or "").partition("<")[0])
        self._newest[phase] = Inside(int(match["done"]), int(match["total"]), item[1] if item else "", elapsed_s=elapsed_s)

    def found(self) -> dict[str, Inside]:
        """The newest progress by phase; tuned shapes belong to the capture of decode graphs, the only place of torch.compile."""
        found = dict(self._newest)
        if self._shapes:
            known = found.get("capture_decode", Inside())
            found["capture_decode"] = msgspec.structs.replace(known, tuned=len(self._shapes))
        return found

    def text(self, phase: str | None) -> str:
        """Progress inside ``phase`` for a person, "" without."""
        inside = self.found().get(phase or "")
        return inside.text if inside is not None else ""


def _seconds(text: str) -> float:
    """tqdm's ``01:49`` or ``1:02:03``; 0 for anything else."""
    if re.fullmatch(r"\d+(?::\d\d){1,2}", text) is None:
        return 0.0
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return float(total)
