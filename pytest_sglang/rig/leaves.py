"""One value of a rig file at a time: converted strictly, or told wrong with what stands there and a right example."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import msgspec

from pytest_sglang.record import units, values
from pytest_sglang.rig.errors import Problem, nearest

KNOWN_READINGS: tuple[str, ...] = (
    "xid",
    "energy_counter",
    "nvlink_errors",
    "pcie",
    "pcie_replays",
    "temperature",
    "clocks_event_reasons",
    "processes",
    "ecc",
    "violation",
    "name",
    "power_limit",
    "persistence",
    "nvlink",
    "placement",
)
"""Readings that an owner may waive in ``unavailable``; the last five are the kinds that the hardware checks themselves name."""

_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-fA-F]{4,}(?:-[0-9a-fA-F]+)*")
_PCI = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-7]))?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")
_SIGN = re.compile(r"\s*([<>]=?|=)")


class Place:
    """Where a value stands. ``wrong`` notes a problem there; all problems of a file gather in one list."""

    def __init__(self, file: Path, key: str, problems: list[Problem]) -> None:
        self.file, self.key, self.problems = file, key, problems

    def inside(self, suffix: str) -> Place:
        """A place within this one: ``[1]`` or ``.name``."""
        return Place(self.file, f"{self.key}{suffix}" if self.key else suffix.removeprefix("."), self.problems)

    def wrong(self, found: str, expected: str, near: str | None = None) -> None:
        """Note what stands here (already shown as text; empty = nothing to show) and what is expected."""
        self.problems.append(Problem(file=self.file, key=self.key, found=found, expected=expected, nearest=near))


Leaf: TypeAlias = Callable[[object, Place], Any]
"""Converts the value at a place; after a problem the answer is never used, for the file as a whole is refused."""


def shown(value: object) -> str:
    """``value`` as it stands in a TOML file, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = f"[{', '.join(shown(each) for each in value)}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key} = {shown(each)}' for key, each in value.items())}}}"
    elif isinstance(value, (str, int, float)):
        text = repr(value)
    else:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        return False
    return True


def text(example: str) -> Leaf:
    """Text that is not empty."""

    def leaf(value: object, place: Place) -> Any:
        if isinstance(value, str) and value.strip():
            return value
        return place.wrong(shown(value), f"is not a text (write e.g. {example!r})")

    return leaf


def matching(pattern: re.Pattern[str], what: str, example: str, *, secret: bool = False) -> Leaf:
    """Text of a given form. ``secret``: what stands there is not shown, it may be a key put in the wrong place."""

    def leaf(value: object, place: Place) -> Any:
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        return place.wrong("what stands there" if secret else shown(value), f"is not {what} (write e.g. {example!r})")

    return leaf


def quantity(unit: str, sign: str = "", *, zero: bool = False) -> Leaf:
    """A positive number of ``unit`` from text with a unit or a bare number; ``sign``: the comparison that may stand before it."""

    def leaf(value: object, place: Place) -> Any:
        try:
            number = units.parse(value, unit)
        except units.UnitError as error:
            not_a_rate = str(error).split(":", 1)[0]
            return place.wrong(shown(value), f"is {not_a_rate} (write e.g. {units.example(unit)})")
        before = _SIGN.match(value) if isinstance(value, str) else None
        if before is not None and (not sign or before[1][0] != sign[0]):
            means = f"{sign!r} is what this key means" if sign else "this key takes none"
            return place.wrong(shown(value), f"begins with {before[1]!r}, but {means} (write e.g. {units.example(unit)})")
        if number < 0 or (number == 0 and not zero):
            least = "is below zero" if zero else "is not above zero"
            return place.wrong(shown(value), f"{least} (write e.g. {units.example(unit)})")
        return number

    return leaf


def whole(example: int, low: int = 1, high: int | None = None) -> Leaf:
    """A whole number from ``low`` to ``high``."""
    beyond = f"is not from {low} to {high}" if high is not None else f"is below {low}"

    def leaf(value: object, place: Place) -> Any:
        if not _is(value, int):
            return place.wrong(shown(value), f"is not a whole number (write e.g. {example})")
        if not low <= int(str(value)) <= (high if high is not None else math.inf):
            return place.wrong(shown(value), f"{beyond} (write e.g. {example})")
        return value

    return leaf


def one_of(known: Sequence[int], example: int) -> Leaf:
    """One of a few whole numbers."""

    def leaf(value: object, place: Place) -> Any:
        if _is(value, int) and value in known:
            return value
        return place.wrong(shown(value), f"is not one of {', '.join(map(str, known))} (write e.g. {example})")

    return leaf


def number(example: float, low: float, high: float = math.inf, *, percent: bool = False) -> Leaf:
    """A number from ``low`` to ``high``; ``percent``: also as text with a percent sign, which is divided by 100."""
    also = f" or '{example * 100:g} %'" if percent else ""

    def leaf(value: object, place: Place) -> Any:
        given = value
        if percent and isinstance(value, str) and value.strip().endswith("%"):
            try:
                given = units.parse(value, "%") / 100
            except units.UnitError:
                given = value
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
            return place.wrong(shown(value), f"is not a number (write e.g. {example:g}{also})")
        if not low <= given <= high:
            span = f"from {low:g} to {high:g}" if high != math.inf else f"at least {low:g}"
            return place.wrong(shown(value), f"is not {span} (write e.g. {example:g}{also})")
        return float(given)

    return leaf


def yes_no(value: object, place: Place) -> Any:
    """true or false, not "yes" and not 1."""
    return value if isinstance(value, bool) else place.wrong(shown(value), "is neither true nor false (write true or false)")


def choice(known: Iterable[str]) -> Leaf:
    """One of the known words."""
    words = tuple(known)

    def leaf(value: object, place: Place) -> Any:
        if isinstance(value, str) and value in words:
            return value
        near = nearest(value, words) if isinstance(value, str) else None
        return place.wrong(shown(value), f"is none of {', '.join(words)}", near)

    return leaf


def many(item: Leaf, example: str) -> Leaf:
    """A list, not empty; each item is told wrong at its own position."""

    def leaf(value: object, place: Place) -> Any:
        if not isinstance(value, list) or not value:
            return place.wrong(shown(value), f"is not a list with something in it (write e.g. {example})")
        return tuple(item(each, place.inside(f"[{index}]")) for index, each in enumerate(value))

    return leaf


def readings(value: object, place: Place) -> Any:
    """``unavailable``: names of readings; a hyphen is read as an underscore."""
    if not isinstance(value, list):
        return place.wrong(shown(value), 'is not a list of readings (write e.g. ["xid"])')
    known = choice(KNOWN_READINGS)
    spelled = [each.replace("-", "_") if isinstance(each, str) else each for each in value]
    return frozenset(known(each, place.inside(f"[{index}]")) for index, each in enumerate(spelled))


def is_pair(value: object) -> bool:
    """Two whole numbers, none below zero."""
    return isinstance(value, list) and _is(value, tuple[int, int]) and min(value) >= 0


def pair(value: object, place: Place) -> Any:
    """Two positions in ``[[gpus]]``."""
    if isinstance(value, list) and is_pair(value):
        return tuple(value)
    return place.wrong(shown(value), "is not a pair of GPUs (write e.g. [0, 1])")


def arguments(value: object, place: Place) -> Any:
    """A command: a list of texts. A single text is refused with the list it stands for, since nothing here runs a shell."""
    if isinstance(value, str):
        try:
            parts = shlex.split(value)
        except ValueError:
            parts = value.split()
        listed = ", ".join(f'"{part}"' for part in parts[:4]) + (", ..." if len(parts) > 4 else "")
        return place.wrong(shown(value), f"is one text, and no shell runs it (write [{listed}])")
    return many(text("bash"), '["bash", "serve.sh"]')(value, place)


def variables(value: object, place: Place) -> Any:
    """Environment of a command: a table of texts. Values may be secrets and are never shown."""
    if not isinstance(value, dict):
        return place.wrong(shown(value), 'is not a table (write e.g. env = {CUDA_VISIBLE_DEVICES = "0,1"})')
    for name, each in value.items():
        if not isinstance(each, str):
            place.inside(f".{name}").wrong("what stands there", f'is not a text (put it in quotes, e.g. {name} = "1")')
        if not _VARIABLE.fullmatch(name):
            place.inside(f".{name}").wrong("", "is not the name of a variable (write e.g. CUDA_VISIBLE_DEVICES)")
    return dict(value)


PHASES = tuple(each for each in values.PHASES if each not in ("ready", "steady"))
"""Phases of a start that last: these may have a budget."""


def phases(value: object, place: Place) -> Any:
    """``[start.phases]``: a duration for each phase of a start that has a budget of its own."""
    if not isinstance(value, dict):
        return place.wrong(shown(value), "is not a table (write [start.phases], then e.g. weights = '2 min' below it)")
    budget = quantity("s", "<=")
    found = {}
    for name, each in value.items():
        inside = place.inside(f".{name}")
        if name not in PHASES:
            inside.wrong("", f"is no phase of a start (known: {', '.join(PHASES)})", nearest(name, PHASES))
            continue
        found[name] = budget(each, inside)
    return found


def expectations(value: object, place: Place) -> Any:
    """``[answers] expect``: prompts, each with what must stand in its answer."""
    example = '[{ prompt = "The capital of France is", contains = "Paris" }]'
    if not isinstance(value, list) or not value:
        return place.wrong(shown(value), f"is not a list of expectations (write e.g. {example})")
    found, known = [], ("prompt", "contains")
    for index, each in enumerate(value):
        inside = place.inside(f"[{index}]")
        if not isinstance(each, dict):
            inside.wrong(shown(each), f"is not a table (write e.g. {example})")
            continue
        for name in each:
            if name not in known:
                inside.inside(f".{name}").wrong("", "is no key of an expectation (known: prompt, contains)", nearest(name, known))
        for name in known:
            if name not in each:
                inside.inside(f".{name}").wrong("", f"is missing (write e.g. {example})")
            elif not isinstance(each[name], str) or not each[name].strip():
                inside.inside(f".{name}").wrong(shown(each[name]), f"is not a text (write e.g. {example})")
        if each.get("prompt") in [other.get("prompt") for other in value[:index] if isinstance(other, dict)]:
            inside.inside(".prompt").wrong(shown(each.get("prompt")), "stands there twice (keep one of them)")
        found.append({name: each.get(name) for name in known})
    return found


def address(value: object, place: Place) -> Any:
    """``http(s)://host:port`` and nothing behind it."""
    example = "(write e.g. 'http://127.0.0.1:30000')"
    if not isinstance(value, str):
        return place.wrong(shown(value), f"is not a URL {example}")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return place.wrong(shown(value), f"is not a URL {example}")
    if parts.username is not None or parts.password is not None:
        return place.wrong(
            "what stands there", "has a user name or password in it: name a variable in api_key_env instead " + example
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not _HOST.fullmatch(parts.hostname):
        return place.wrong(shown(value), f"is not an http or https URL with a host {example}")
    if not port:
        return place.wrong(shown(value), f"names no port {example}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        return place.wrong(shown(value), f"has something behind the port, which must be left away {example}")
    return value.rstrip("/")


def local_path(example: str) -> Leaf:
    """A path; a relative one is meant from the folder of the file that it stands in, ``~`` from the home directory."""
    plain = text(example)

    def leaf(value: object, place: Place) -> Any:
        path = plain(value, place)
        return path if path is None else str(place.file.resolve().parent / Path(path).expanduser())

    return leaf


def unit_name(value: object, place: Place) -> Any:
    """A systemd unit; without a suffix ``.service`` is meant, as systemctl does."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9:_.\\@-]+", value) or value.startswith(("-", ".")):
        return place.wrong(shown(value), "is not the name of a systemd unit (write e.g. 'sglang.service')")
    return value if "." in value else f"{value}.service"


uuid = matching(_UUID, "a GPU's UUID", "GPU-2e7d3b3c-4eb8-ce4d-da58-84580d497b49")
pci = matching(_PCI, "a PCI bus id", "0000:41:00.0")
variable = matching(_VARIABLE, "the name of an environment variable, never the key itself", "SGLANG_API_KEY", secret=True)


def same_bus(text_a: str, text_b: str) -> bool:
    """Two spellings of one PCI bus id: ``00000000:41:00.0`` and ``41:00``."""

    def plain(text_: str) -> tuple[int, int, int, int]:
        match = _PCI.fullmatch(text_)
        assert match is not None
        return int(match[1] or "0", 16), int(match[2], 16), int(match[3], 16), int(match[4] or "0")

    return plain(text_a) == plain(text_b)
