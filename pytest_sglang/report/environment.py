"""The fingerprint of a run as groups of names and values, whatever a version of the record holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_sglang.record.values import Value

TITLES = {"gpus": "GPUs", "server": "Server", "packages": "Packages", "arguments": "All arguments"}
NAMES = {
    "plugin": "pytest-sglang",
    "python": "Python",
    "os": "operating system",
    "faults": "injected faults",
    "driver": "NVIDIA driver",
    "url": "URL",
    "control": "controlled by",
    "subject": "owner",
    "pid": "process id at the end",
    "version": "SGLang",
    "argv": "command line",
    "models": "served models",
    "index": "GPU",
    "uuid": "UUID",
    "pci": "PCI address",
    "serial": "serial number",
    "vbios": "VBIOS",
    "cores": "CUDA cores",
    "memory_bytes": "memory",
    "ecc": "ECC",
    "mig": "MIG",
    "persistence": "persistence mode",
    "requested_power_limit_w": "power limit, requested",
    "enforced_power_limit_w": "power limit, enforced",
    "default_power_limit_w": "power limit, default",
    "min_power_limit_w": "power limit, lowest",
    "max_power_limit_w": "power limit, highest",
    "pcie_max_gen": "PCIe generation, at most",
    "pcie_max_width": "PCIe width, at most",
    "pcie_width": "PCIe width",
    "unreadable": "not readable",
}
"""Names of the record for a person; others lose their underscores."""
LONG = 24
"""So many pairs at once are a dump of every argument, not a summary."""


class Table(Value, frozen=True, kw_only=True):
    """Equal things side by side, GPUs say."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Group(Value, frozen=True, kw_only=True):
    """Names and values under a heading; ``folded`` = long, and read only by who looks for it. ``code``: the values are typed text."""

    title: str
    pairs: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    folded: bool = False
    code: bool = False


def groups(environment: Mapping[str, Any]) -> list[Group]:
    """``environment`` of run.json for a person: the machine first, then its parts, long lists folded."""
    told: list[Group] = []
    _collect("Machine", environment, told)
    return told


def name_of(key: str) -> str:
    """ "compute capability" of ``compute_capability``."""
    return NAMES.get(key, key.replace("_", " "))


def memory_text(size: float) -> str:
    """Bytes of a card as its maker writes them: "24 GiB", "139.8 GiB"."""
    return f"{size / 2**30:.1f} GiB".replace(".0 GiB", " GiB")


def _collect(title: str, facts: Mapping[str, Any], told: list[Group]) -> None:
    plain = {str(key): value for key, value in facts.items() if not isinstance(value, Mapping) and not _is_table(value)}
    command = plain.pop("argv", None) if title != "Machine" else None
    if plain:
        typed = title.endswith("all arguments")
        pairs = tuple(
            (f"--{key.replace('_', '-')}" if typed else name_of(key), quantity(key, value)) for key, value in plain.items()
        )
        told.append(Group(title=title, pairs=pairs, folded=len(plain) > LONG, code=typed))
    if command:
        told.append(Group(title=f"{title}: command line", pairs=(("", text(command)),), folded=True, code=True))
    for key, value in facts.items():
        name = TITLES.get(key, name_of(str(key)))
        heading = name if title == "Machine" else f"{title}: {name[0].lower()}{name[1:]}"
        if isinstance(value, Mapping):
            _collect(heading, value, told)
        elif _is_table(value):
            told += _side_by_side(heading, value)


def _is_table(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _side_by_side(heading: str, items: Sequence[Mapping[str, Any]]) -> list[Group]:
    """What all of several cards have in common once, and a table of the few columns in which they differ: it fits a page."""
    keys = [key for key in dict.fromkeys(key for item in items for key in item) if any(item.get(key) is not None for item in items)]
    if len(items) == 1:
        return [Group(title=heading, pairs=tuple((name_of(str(key)), quantity(str(key), items[0].get(key))) for key in keys))]
    differing = [key for key in keys if any(item.get(key) != items[0].get(key) for item in items)]
    shared = tuple((name_of(str(key)), quantity(str(key), items[0].get(key))) for key in keys if key not in differing)
    rows = tuple(tuple(quantity(str(key), item.get(key)) for key in differing) for item in items)
    table = Table(columns=tuple(name_of(str(key)) for key in differing), rows=rows) if differing else None
    title = f"{heading}: {len(items)} alike" if not differing else f"{heading} ({len(items)})"
    return [Group(title=title, pairs=shared, table=table)]


def quantity(key: str, value: Any) -> str:
    """A value in the unit that its name ends with: "24 GiB", "250 W"."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if key.endswith("_bytes"):
            return memory_text(value)
        if key.endswith("_w"):
            return f"{value:g} W"
        if key == "cores":
            return f"{value:,}"
    return text(value)


def text(value: Any) -> str:
    """A value of any kind in one line: "not read" for nothing, "none" for an empty list."""
    if value is None:
        return "not read"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return _mapping(value) or "none"
    if isinstance(value, (list, tuple)):
        # the words of a command line are read as one line, other lists as an enumeration
        separator = " " if any(isinstance(each, str) and each.startswith("-") for each in value) else ", "
        return separator.join(text(each) for each in value) or "none"
    return str(value)


def _mapping(value: Mapping[Any, Any]) -> str:
    """Names that have the same value together: "serial number, ECC, MIG: Not Supported"."""
    together: dict[str, list[str]] = {}
    for key, inner in value.items():
        together.setdefault(text(inner), []).append(name_of(str(key)))
    return "; ".join(f"{', '.join(names)}: {told}" for told, names in together.items())
