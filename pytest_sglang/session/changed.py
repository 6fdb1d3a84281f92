"""What differs between two runs of a rig, told for a person: the names of ``compare``, without what differs in every run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_sglang.judge import gain, keys
from pytest_sglang.record.run import Run
from pytest_sglang.session import past
from pytest_sglang.session.compared_changes import CARD, seen
from pytest_sglang.session.comparison import key

WARMER_C = 5.0
"""A first round that begins so much warmer or colder is worth a line; less is the weather."""
OF_ONE_RUN = frozenset(
    {"--port", "--nccl-port", "--dist-init-addr", "--grpc-port", "--random-seed", "--rig", "--crash-dump-folder"}
)
"""Flags of a server that say where it happened to run, not what it is."""
# a simulated rig gives its cards new names each time: the first two are a real card's only
_CARD = tuple(dict.fromkeys(("uuid", "pci", "name", *gain._CARD, *(name for name, _ in CARD))))
CARD_NAMES = dict(CARD)
"""Fields of a card by the names that a comparison gives them."""
_FIRST = (
    "faults",
    "power_levels_w",
    "engine",
    "driver",
    "kernel",
    "model",
    "torch_compile",
    "package ",
    "argument ",
    "flag ",
    "gpu ",
)
"""What explains most comes first; the rest follows in its order."""

Pair = tuple[str, Any, Any]


def between(before: Run, after: Run) -> list[dict[str, Any]]:
    """``[{"name", "before", "after"}]``, the most telling first; [] = nothing that is recorded differs.

    Names are those of a comparison's key (``gpu 3 pcie_width``, ``argument max_running_requests``, ``package torch``), and beside
    them ``faults``, ``power_levels_w``, ``flag --mem-fraction-static`` (as typed) and ``promise start.warm_s`` (the rig file).
    """
    pairs = [*_run(before, after), *_key(before, after), *_flags(before, after), *_cards(before, after)]
    pairs += [*_seen(before, after, {name for name, _, _ in pairs}), *_promises(before, after)]
    told: dict[str, Pair] = {}
    for each in pairs:
        told.setdefault(each[0], each)
    return [{"name": name, "before": old, "after": new} for name, old, new in sorted(told.values(), key=_place)]


def _place(pair: Pair) -> int:
    return next((place for place, begin in enumerate(_FIRST) if pair[0].startswith(begin)), len(_FIRST))


def _run(before: Run, after: Run) -> Iterable[Pair]:
    faults = [list(run.environment.get("faults") or ()) for run in (before, after)]
    if faults[0] != faults[1]:
        yield "faults", faults[0], faults[1]
    if before.power_levels_w != after.power_levels_w:
        yield "power_levels_w", list(before.power_levels_w), list(after.power_levels_w)


def _key(before: Run, after: Run) -> list[Pair]:
    """The key's differences but the cards'; a side that never saw the server's arguments (or packages) says so once."""
    found = keys.differences(key(before), key(after))
    pairs = [(each.name, each.before, each.after) for each in found if not each.name.startswith("gpu ")]
    sides = [dict(run.environment.get("server") or {}) for run in (before, after)]
    for group, name in (("argument ", "arguments"), ("package ", "packages")):
        known = [bool(side.get(name)) for side in sides]
        if known[0] != known[1]:
            pairs = [each for each in pairs if not each[0].startswith(group)]
            pairs.append((f"server {name}", "recorded" if known[0] else None, "recorded" if known[1] else None))
    changed = {name for name, _, _ in pairs}
    belongs = {f"argument {each}" for thing, names in gain.BELONGS.items() if thing in changed for each in names}
    if "engine" in changed:
        # another version knows other arguments: those that it has more or less are its own doing
        belongs |= {name for name, old, new in pairs if name.startswith("argument ") and None in (old, new)}
    if any(name.startswith("server ") for name in changed):
        belongs |= {"engine", "model", "torch_compile"} & {name for name, old, new in pairs if None in (old, new)}
    return [each for each in pairs if each[0] not in belongs]


def _flags(before: Run, after: Run) -> Iterable[Pair]:
    """The command line as it was typed, where both are known: ``--mem-fraction-static`` is computed where it is not given."""
    argv = [tuple(map(str, dict(run.environment.get("server") or {}).get("argv") or ())) for run in (before, after)]
    if not all(argv):
        return
    programs = [" ".join(_program(each)) for each in argv]
    if programs[0] != programs[1]:
        yield "flag program", programs[0], programs[1]
    flags = [past._flags(each) for each in argv]
    keyed = {name.removeprefix("argument ") for name, _, _ in _key(before, after)}
    for flag in dict.fromkeys((*flags[0], *flags[1])):
        old, new = (side.get(flag) for side in flags)
        if old != new and flag not in OF_ONE_RUN and flag[2:].replace("-", "_") not in keyed:
            yield f"flag {flag}", None if old is None else old or "set", None if new is None else new or "set"


def _program(argv: tuple[str, ...]) -> tuple[str, ...]:
    end = next((place for place, word in enumerate(argv) if word.startswith("--")), len(argv))
    return argv[:end]


def _cards(before: Run, after: Run) -> Iterable[Pair]:
    sides = [{str(card.get("index")): card for card in run.environment.get("gpus") or ()} for run in (before, after)]
    if not all(sides):
        return
    for index in sorted({*sides[0], *sides[1]}, key=lambda each: (len(each), each)):
        mine, theirs = (side.get(index) for side in sides)
        if mine is None or theirs is None:
            yield f"gpu {index}", mine and mine.get("name"), theirs and theirs.get("name")
            continue
        for name in _CARD if not after.simulated else _CARD[2:]:
            old, new = mine.get(name), theirs.get(name)
            asked = name == "requested_power_limit_w" and (old, new) == tuple(
                each.get("enforced_power_limit_w") for each in (mine, theirs)
            )
            if old != new and not asked:
                yield f"gpu {index} {name}", old, new


def _seen(before: Run, after: Run, told: set[str]) -> Iterable[Pair]:
    """What ``compare`` shows beside the key; temperatures only where they are far apart, kernels of a start never."""
    for each in seen(before, after):
        if each.name in told or each.name.startswith(("GPU ", "new kernels", "simulated faults")):
            continue
        if each.name.startswith("temperature"):
            near = None in (each.before, each.after) or abs(each.before - each.after) < WARMER_C
            if near:
                continue
        yield each.name, each.before, each.after


def _promises(before: Run, after: Run) -> Iterable[Pair]:
    """The rig file's leaves that differ: a promise may have been raised since."""
    sides = [_leaves(run.rig) for run in (before, after)]
    for name in dict.fromkeys((*sides[0], *sides[1])):
        old, new = (side.get(name) for side in sides)
        simulated = after.simulated and name in ("server.url", "server.log")
        if old != new and name not in ("name", "path") and not simulated and not name.startswith("workload."):
            yield f"promise {name}", old, new
    for name in dict.fromkeys((*before.rig.get("workload", {}), *after.rig.get("workload", {}))):
        old, new = (dict(run.rig.get("workload") or {}).get(name) for run in (before, after))
        if old != new and None not in (old, new):
            yield f"workload {name}", old, new


def _leaves(rig: Mapping[str, Any]) -> dict[str, Any]:
    """``{"start.warm_s": 90.0, "throughput 250 W, NVLink.min_tok_s": 42.0, ...}``; what is not promised is absent."""
    found: dict[str, Any] = {}
    for name, value in rig.items():
        if isinstance(value, Mapping):
            found.update({f"{name}.{key}": inner for key, inner in _leaves(value).items()})
        elif isinstance(value, (list, tuple)) and value and all(isinstance(each, Mapping) for each in value):
            for position, row in enumerate(value):
                found.update({f"{_row(name, position, row)}.{key}": inner for key, inner in row.items()})
        else:
            found[name] = value
    return {name: value for name, value in found.items() if value is not None}


def _row(name: str, position: int, row: Mapping[str, Any]) -> str:
    if name != "throughput":
        return f"{name} {position}"
    power = row.get("power_w")
    parts = [
        "any power" if power is None else f"{power:g} W",
        "" if row.get("nvlink") is None else "with NVLink" if row["nvlink"] else "without NVLink",
        "" if row.get("streams", 1) == 1 else f"{row['streams']} streams",
        "" if row.get("quantity") == "decode" else str(row.get("quantity", "")).replace("_", " "),
    ]
    return f"throughput {', '.join(each for each in parts if each)}"
