"""What ``systemctl show`` and unit files write, read: time spans, exit codes, environment files, start limits."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from pytest_sglang.record import units
from pytest_sglang.record.values import Value

_SPAN = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
    "month": 2629800.0,
    "y": 31557600.0,
}


class StartLimit(Value, frozen=True):
    """StartLimitBurst starts within StartLimitIntervalSec, and how many were made in the last ``interval_s``; burst 0 = no limit."""

    burst: int
    interval_s: float
    recent: int

    @property
    def used_up(self) -> bool:
        """systemd would refuse the next start."""
        return self.burst > 0 and self.recent >= self.burst

    @property
    def none_to_spare(self) -> bool:
        """After one more start none would be left to the owner (and to whoever puts things back)."""
        return self.burst > 0 and self.recent >= 1 and self.recent + 1 >= self.burst

    def describe(self) -> str:
        """``2 starts in 60 min 00 s, StartLimitBurst=3``."""
        while_ = "since boot" if self.interval_s == float("inf") else f"in {units.duration(self.interval_s)}"
        return f"{self.recent} start{'' if self.recent == 1 else 's'} {while_}, StartLimitBurst={self.burst}"


def span_s(text: str) -> float | None:
    """systemd's time span ("1min 30s", "infinity", "0") in seconds; None = infinity or not a time span."""
    if text.strip() in ("", "infinity"):
        return None
    total = 0.0
    for word in text.split():
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", word)
        if match is None or (match[2] or "s") not in _SPAN:
            return None
        total += float(match[1]) * _SPAN[match[2] or "s"]
    return total


def number(text: str | None) -> int:
    """A property that is a number; 0 where it is none."""
    return int(text) if text and text.isdigit() else 0


def exit_code(shown: dict[str, str]) -> int | None:
    """ExecMainCode as in waitid(2): 1 exited, 2 killed, 3 dumped core."""
    status = number(shown.get("ExecMainStatus"))
    code = shown.get("ExecMainCode", "")
    return status if code in ("1", "exited") else -status if code in ("2", "3", "killed", "dumped") else None


def words(text: str) -> list[str]:
    """Words as a unit file quotes them."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def environment_file(path: Path) -> dict[str, str]:
    """Settings of an EnvironmentFile; {} where it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith(("#", ";")))
    return {name.strip(): " ".join(words(value)) for name, _, value in pairs}


def home(user: str | None) -> str:
    """Home directory of a unit's user."""
    import pwd

    try:
        return pwd.getpwnam(user or "root").pw_dir
    except KeyError:
        return "/root"
