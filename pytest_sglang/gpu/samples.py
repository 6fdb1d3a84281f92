"""The sampler's file: one JSON array a line. Written by the sampler's process, read by the run as it grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_sglang.gpu.integral import Sample, SlowSample

# ["h", version, [uuid, ...], fast_hz, slow_hz]     head, first line
# ["f", [t, average_w, instant_w, energy_j], ...]   fast readings, one item a card (null: lost), watts and joules or null
# ["s", card, t, °C, sm_mhz, mem_mhz, mask, gen, width]   slow readings of one card
# ["m", card, "energy_j", "Not Supported"]          why a reading is missing, told once
# ["x", card, t, "GPU 3 is lost ..."]               the card stopped answering
# ["e", "text"]                                     the sampler could not begin
VERSION = 1


class SampleFile:
    """Samples as far as they are written; ``update()`` reads what was added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uuids: tuple[str, ...] = ()
        self.fast: dict[str, list[Sample]] = {}
        self.slow: dict[str, list[SlowSample]] = {}
        self.missing: dict[str, dict[str, str]] = {}
        """Readings that a card does not give, by UUID: name and reason."""
        self.lost: dict[str, tuple[float, str]] = {}
        """Cards that stopped answering, by UUID: when (epoch seconds) and how it was said."""
        self.failure: str | None = None
        self.newest_s = 0.0
        self._offset = 0

    def update(self) -> None:
        """Read every whole line that was added since the last time."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added.rfind(b"\n") + 1
        self._offset += whole
        for line in added[:whole].splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, IndexError, TypeError, KeyError):
                continue  # a line that a full disk or a crash broke: its absence shows as a gap

    def _take(self, item: list[Any]) -> None:
        kind = item[0]
        if kind == "f":
            for uuid, reading in zip(self.uuids, item[1:], strict=True):
                if reading is not None:
                    sample = Sample(*reading)
                    self.fast[uuid].append(sample)
                    self.newest_s = max(self.newest_s, sample.t_s)
        elif kind == "s":
            self.slow[self.uuids[item[1]]].append(SlowSample(*item[2:]))
        elif kind == "h":
            self.uuids = tuple(item[2])
            self.fast = {uuid: [] for uuid in self.uuids}
            self.slow = {uuid: [] for uuid in self.uuids}
            self.missing = {uuid: {} for uuid in self.uuids}
        elif kind == "m":
            self.missing[self.uuids[item[1]]][item[2]] = item[3]
        elif kind == "x":
            self.lost[self.uuids[item[1]]] = (item[2], item[3])
        elif kind == "e":
            self.failure = item[1]
