"""What systemd-tmpfiles will remove: the rules of tmpfiles.d(5), and the one that a path falls under."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

FOLDERS = (Path("/etc/tmpfiles.d"), Path("/run/tmpfiles.d"), Path("/usr/local/lib/tmpfiles.d"), Path("/usr/lib/tmpfiles.d"))
"""Where rules stand, the strongest first: a file hides those of its name further down (tmpfiles.d(5))."""

_AGED = "dDevqQC"
"""Types whose age field makes old files in the directory go."""
_AT_BOOT = "DR"
"""Types whose content goes at every boot (systemd-tmpfiles --remove); ``r`` removes the path alone."""
_GLOBBED = "exXrRzZm"
_UNITS = {
    "us": 1e-6,
    "usec": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
    "w": 604800.0,
    "week": 604800.0,
}
_SPECIFIERS = {
    "t": "/run",
    "S": "/var/lib",
    "C": "/var/cache",
    "L": "/var/log",
    "T": "/tmp",
    "V": "/var/tmp",
    "h": "/root",
    "%": "%",
}
"""Specifiers with their values for the system's instance; a line with another one is passed over."""


class Rule(NamedTuple):
    """One line. ``age_s`` None: nothing goes by age. ``where`` is its file and line."""

    type: str
    path: str
    age_s: float | None
    at_boot: bool
    where: str

    @property
    def aged(self) -> bool:
        """Whether old files below its path go."""
        return self.type in _AGED and self.age_s is not None

    @property
    def emptied(self) -> bool:
        """Whether its path is emptied at every boot."""
        return self.type in _AT_BOOT

    def covers(self, path: Path) -> bool:
        """Whether ``path`` is its path or lies below it; types that take patterns are matched part by part."""
        own, given = Path(self.path).parts, path.parts
        if len(own) > len(given):
            return False
        if self.type not in _GLOBBED:
            return own == given[: len(own)]
        return all(fnmatch.fnmatchcase(part, pattern) for part, pattern in zip(given, own, strict=False))


def read(folders: Sequence[Path] = FOLDERS) -> tuple[Rule, ...]:
    """Every rule that is in force, in the order in which systemd reads them; of two for one path the first holds.

    A file that cannot be read, an empty one in a stronger folder and a link to /dev/null hide the weaker ones of their name.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            if name.endswith(".conf"):
                files.setdefault(name, folder / name)
    found: dict[tuple[str, bool], Rule] = {}
    for name in sorted(files):
        try:
            text = files[name].read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for rule in parse(text, str(files[name])):
            # exclusions stand beside a rule for the same path, they do not replace it
            found.setdefault((rule.path, rule.type in "xX"), rule)
    return tuple(found.values())


def parse(text: str, file: str) -> Iterator[Rule]:
    """The rules of one file; lines that systemd would refuse are passed over."""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            fields = shlex.split(line)
        except ValueError:
            continue
        path = _specified(fields[1]) if len(fields) > 1 else None
        if path is None or not path.startswith("/") or not re.fullmatch(r"[A-Za-z][+!=~^$?-]*", fields[0]):
            continue
        age = _age(fields[5]) if len(fields) > 5 else None
        yield Rule(fields[0][0], os.path.normpath(path), age, "!" in fields[0], f"{file}:{number}")


def _specified(path: str) -> str | None:
    if any(name not in _SPECIFIERS for name in re.findall(r"%(.)", path)):
        return None
    return re.sub(r"%(.)", lambda match: _SPECIFIERS[match[1]], path)


def _age(text: str) -> float | None:
    """Seconds of an age field ("10d", "1w 2h", "~30d", "am:12h", "0"); None for "-" and what cannot be read."""
    text = re.sub(r"^~?(?:[aAbBcCmM]+:)?", "", text)
    if re.fullmatch(r"\d+", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*", "", text):
        return None
    try:
        return sum(float(number) * _unit(name) for number, name in parts)
    except KeyError:
        return None


def _unit(name: str) -> float:
    return _UNITS[name] if name in _UNITS else _UNITS[name.removesuffix("s")]


def of(path: Path, rules: Iterable[Rule]) -> tuple[Rule | None, Rule | None]:
    """(the rule by whose age files below ``path`` go, the rule that empties it at boot); None where there is none.

    The longest path decides: a directory with a line of its own is passed over when its parents are cleaned. ``x`` saves a path
    with all below it from cleaning by age, ``X`` the path alone; neither saves it at boot.
    """
    covering = [rule for rule in rules if rule.covers(path)]
    saved = any(rule.type == "x" or (rule.type == "X" and len(Path(rule.path).parts) == len(path.parts)) for rule in covering)
    # a rule without an age still shields what is below it from its parents' age
    lined = [rule for rule in covering if rule.type in _AGED]
    nearest = max(lined, key=lambda rule: len(Path(rule.path).parts), default=None)
    aged = nearest if nearest is not None and nearest.aged and not saved else None
    return aged, next((rule for rule in covering if rule.emptied), None)
