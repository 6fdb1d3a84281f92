"""What has changed since the last pass, as text: one wording for page, terminal and job summary."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_sglang.record.run import Measurement, Run
from pytest_sglang.record.values import Value
from pytest_sglang.report import environment, view
from pytest_sglang.session import changed

NAMES = {
    "faults": "injected faults",
    "power_levels_w": "power level",
    "engine": "SGLang",
    "client": "pytest-sglang",
    "torch_compile": "torch.compile",
    "nvlink": "NVLink in the rig file",
    "flag program": "program of the server",
    "server arguments": "arguments of the server",
    "server packages": "packages of the server",
}
CARD_NAMES = {
    **changed.CARD_NAMES,
    "enforced_power_limit_w": "power limit",
    "requested_power_limit_w": "requested power limit",
    "uuid": "UUID",
    "pci": "PCI address",
}
_UNITS = (("_tok_s", "tok/s"), ("_j_per_token", "J/token"), ("_w", "W"), ("_s", "s"), ("_c", "°C"))
LONGEST = 60
"""Characters of a value; a longer one is cut in its middle."""


class Changed(Value, frozen=True, kw_only=True):
    """One thing that differs, for a person."""

    name: str
    before: str
    after: str

    def text(self, arrow: str = "->") -> str:
        """ "driver 580.95 -> 580.159"."""
        return f"{self.name} {self.before} {arrow} {self.after}"


class Since(Value, frozen=True, kw_only=True):
    """The newest earlier pass. ``day`` "26 Nov 2026"; ``link``: its page beside this one."""

    run_id: str
    day: str
    link: str
    changed: tuple[Changed, ...]
    other_power: str = ""
    """Its power level where that is another one."""


def looked_in(run: Run) -> str:
    """Where a last pass was looked for, and not found; empty where one was found, or the run is older than the looking."""
    return "" if run.since_pass.get("run_id") else str(run.since_pass.get("looked_in") or "")


def of(run: Run, folder: Path | None = None) -> Since | None:
    """None where there is no earlier pass of this rig, or none was looked for. ``folder``: the run's, to link what lies beside it."""
    found = run.since_pass
    if not found.get("run_id"):
        return None
    levels = [each for each in found.get("power_levels_w") or () if isinstance(each, (int, float))]
    other = levels and tuple(levels) != run.power_levels_w
    run_id = str(found["run_id"])
    return Since(
        run_id=run_id,
        day=day(str(found.get("started", ""))),
        link=f"../{run_id}/report.html" if folder is not None and _is_beside(folder, run_id) else "",
        changed=tuple(changes(found.get("differences") or ())),
        other_power=" and ".join(f"{each:g} W" for each in levels) if other else "",
    )


def _is_beside(folder: Path, run_id: str) -> bool:
    return "/" not in run_id and (folder.parent / run_id / "report.html").is_file()


def measured_then(run: Run, label: str) -> str:
    """What the limit of this promise was about at the last pass: "43.4 tok/s"; empty where that is not known."""
    found = dict(run.since_pass.get("measured") or {}).get(label)
    if not isinstance(found, Mapping) or isinstance(found.get("value"), str) or found.get("value") is None:
        return ""
    text = view.value_text(Measurement(found["value"], str(found.get("unit") or "")))
    return view.counted(text, str(found.get("quantity") or ""), found["value"])


def day(iso: str) -> str:
    """ "26 Nov 2026"; the text itself where it is no time."""
    from datetime import datetime

    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{moment.day} {moment:%b %Y}"


def changes(differences: Sequence[Mapping[str, Any]]) -> list[Changed]:
    """Differences for a person, cards that changed alike in one line: "GPU 0 to 5 power limit"."""
    told: list[Changed] = []
    cards: dict[tuple[str, str, str], list[str]] = {}
    for each in differences:
        raw = str(each.get("name"))
        before, after = (value_text(raw, each.get(side)) for side in ("before", "after"))
        words = raw.split(" ", 2)
        if words[0] == "gpu" and len(words) == 3:
            told.append(Changed(name=raw, before=before, after=after))
            cards.setdefault((words[2], before, after), []).append(words[1])
        else:
            told.append(Changed(name=name_text(raw), before=before, after=after))
    return [one for each in told if (one := _grouped(each, cards)) is not None]


def _grouped(each: Changed, cards: Mapping[tuple[str, str, str], list[str]]) -> Changed | None:
    words = each.name.split(" ", 2)
    if words[0] != "gpu" or len(words) < 3:
        return each
    alike = cards[(words[2], each.before, each.after)]
    if words[1] != alike[0]:
        return None
    name = CARD_NAMES.get(words[2], words[2].replace("_", " "))
    return Changed(name=f"GPU {numbers(alike)} {name}", before=each.before, after=each.after)


def numbers(indices: Sequence[str]) -> str:
    """ "3", "0, 2", "0 to 5"."""
    if len(indices) > 2 and all(each.isdigit() for each in indices):
        values = [int(each) for each in indices]
        if values == list(range(values[0], values[0] + len(values))):
            return f"{values[0]} to {values[-1]}"
    return ", ".join(indices)


def name_text(raw: str) -> str:
    """ "argument --mem-fraction-static" of ``argument mem_fraction_static``."""
    if raw in NAMES:
        return NAMES[raw]
    kind, _, rest = raw.partition(" ")
    if kind == "package":
        return rest.replace("_", "-")
    if kind == "argument":
        return f"argument --{rest.replace('_', '-')}"
    if kind == "flag":
        return f"argument {rest}"
    if kind == "gpu":
        return f"GPU {rest}"
    if kind == "promise":
        bare = next((rest.removesuffix(end) for end, _ in _UNITS if rest.endswith(end)), rest)
        return f"promise {bare.replace('_', ' ')}"
    return raw.replace("_", " ")


def value_text(raw: str, value: Any) -> str:
    """A value in the unit that its name ends with."""
    if value is None:
        return "not given" if raw.startswith(("flag ", "promise ", "argument ")) else "not there" if _is_card(raw) else "not known"
    if isinstance(value, (list, tuple)):
        texts = [f"{each:g} W" if raw == "power_levels_w" else value_text("", each) for each in value]
        return ", ".join(texts) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if raw.endswith("memory_bytes") and isinstance(value, (int, float)):
        return environment.memory_text(value)
    unit = next((unit for end, unit in _UNITS if raw.endswith(end)), "")
    if isinstance(value, (int, float)):
        return f"{value:g} {unit}".strip()
    text = view._line(str(value)) or "empty"
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2 - 1]}…{text[1 - LONGEST // 2 :]}"


def _is_card(raw: str) -> bool:
    return raw.startswith("gpu ") and raw.count(" ") == 1


def line(run: Run, arrow: str = "->", most: int = 6) -> str:
    """One line for whoever asks why it fails now: "since the last pass (26 Nov 2026, RUN): driver A -> B, ..."; empty without one."""
    found = of(run)
    if found is None:
        return ""
    told = [each.text(arrow) for each in found.changed]
    more = [f"and {len(told) - most + 1} more"] if len(told) > most else []
    shown = told[: most - 1] if more else told
    head = f"since the last pass ({found.day}, {found.run_id}): "
    return head + (", ".join([*shown, *more]) or "nothing that is recorded has changed")


def lines(run: Run, width: int, most: int = 3) -> list[str]:
    """``line`` folded to at most ``most`` lines of ``width``, fewer things named rather than a line more."""
    for things in range(6, 0, -1):
        text = line(run, most=things)
        folded = textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False)
        if len(folded) <= most:
            return folded
    return [*folded[: most - 1], f"{folded[most - 1][: width - 4]} ..."]
