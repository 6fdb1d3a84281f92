"""Run folders, newest first, and the beginning of a run.json: what tells whose run it is without reading the whole."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from pytest_sglang.record.values import Value

BYTES = 4096
"""A run.json begins with verdict, power levels and the rig's name, as ``record.run.write`` writes them."""
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ")
"""The moment with which a run's id, and its folder's name, begin."""
_VERDICT = re.compile(rb'^ "verdict": "(\w+)"', re.MULTILINE)
_SIMULATED = re.compile(rb'^ "simulated": (true|false)', re.MULTILINE)
_LEVELS = re.compile(rb'^ "power_levels_w": (\[[^\]]*\])', re.MULTILINE)
_RIG = re.compile(rb'^ "rig": \{\s+"name": ("(?:[^"\\]|\\.)*")', re.MULTILINE)


class Beginning(Value, frozen=True, kw_only=True):
    """What the first lines tell; None: they do not tell."""

    verdict: str | None = None
    simulated: bool | None = None
    rig: str | None = None
    power_levels_w: list[float] | None = None

    def may_be_of(self, rig: object, simulated: bool) -> bool:
        """Whether they leave open that it is a run of this rig."""
        return self.simulated in (None, simulated) and self.rig in (None, rig)


def newest_first(folder: Path) -> list[Path]:
    """run.json of every folder below ``folder``: by the time in the folder's name, else by when it was written. [] = unreadable.

    Names that begin with a dot are not ours to read: a run that is being removed, say.
    """
    found: list[tuple[str, str, Path]] = []
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []
    for name in names:
        path = folder / name / "run.json"
        match = STAMP.match(name)
        try:
            stamp = match[0] if match else time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime(path.stat().st_mtime))
        except OSError:
            continue
        found.append((stamp, name, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def read(path: Path) -> Beginning:
    """The beginning of a run.json. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        head = file.read(BYTES)
    verdict, simulated = _VERDICT.search(head), _SIMULATED.search(head)
    return Beginning(
        verdict=None if verdict is None else verdict[1].decode(),
        simulated=None if simulated is None else simulated[1] == b"true",
        rig=_json(head, _RIG),
        power_levels_w=_json(head, _LEVELS),
    )


def _json(head: bytes, pattern: re.Pattern[bytes]) -> Any:
    found = pattern.search(head)
    try:
        return None if found is None else json.loads(found[1])
    except ValueError:
        return None
