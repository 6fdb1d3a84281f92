"""What must hold between the values of a rig file: each told at the value that is to be changed."""

from __future__ import annotations

from typing import Any

from pytest_sglang.record import units
from pytest_sglang.rig.errors import Problem
from pytest_sglang.rig.leaves import Place, is_pair, same_bus
from pytest_sglang.rig.merge import CONTROLS, Merged
from pytest_sglang.rig.model import Workload

SAME_LEVEL_W = 2.0
"""Levels this close cannot be told apart: a row stands for its level and one watt on either side."""
_IDENTITIES = ("index", "uuid", "pci")


class _At:
    """Places of a merged file by their keys."""

    def __init__(self, merged: Merged, problems: list[Problem]) -> None:
        self._merged, self._problems = merged, problems

    def __call__(self, table: str, key: str = "", position: int | None = None) -> Place:
        shown = table if position is None else f"{table}[{position}]"
        keys = (table, key) if key else (table,)
        return Place(self._merged.file_of(keys), f"{shown}.{key}" if key else shown, self._problems)


def across(merged: Merged, values: dict[str, Any], problems: list[Problem]) -> None:
    """Note every contradiction between values that could be read; one that could not has been told already."""
    at = _At(merged, problems)
    gpus = values.get("gpus", [])
    raw = merged.values.get("gpus")
    if not gpus and "gpus" in merged.values and isinstance(raw, list) and not raw:
        at("gpus").wrong("[]", "promises no GPU (write [[gpus]] once a card, or leave gpus away)")
    _gpus(at, gpus, raw if isinstance(raw, list) else [])
    _nvlink(at, merged.values.get("nvlink"), len(gpus))
    _server(at, values.get("server", {}), merged.values.get("server"), len(gpus))
    _rows(at, values.get("throughput", []), merged.values.get("throughput"))
    _start(at, values.get("start", {}))
    _gain(at, values.get("gain", {}))
    _workload(at, values.get("workload", {}))
    if "answers" in merged.values and "server" not in merged.values:
        at("answers").wrong("", "needs a server to ask (add a [server] table, or leave [answers] away)")


def _gpus(at: _At, gpus: list[dict[str, Any]], raw: list[Any]) -> None:
    for position, (gpu, written) in enumerate(zip(gpus, raw, strict=False)):
        given = [name for name in _IDENTITIES if name in written]
        if not given:
            at("gpus", position=position).wrong(
                "", "says not which card it is (write one of index = 0, uuid = 'GPU-...', pci = '0000:41:00.0')"
            )
        elif len(given) > 1:
            at("gpus", position=position).wrong("", f"names its card twice, by {' and by '.join(given)} (keep one of them)")
        for other in range(position):
            for name in _IDENTITIES:
                mine, theirs = gpu.get(name), gpus[other].get(name)
                if mine is not None and theirs is not None and _same(name, mine, theirs):
                    at("gpus", name, position).wrong(repr(mine), f"is gpus[{other}] already (each card stands once)")


def _same(name: str, mine: Any, theirs: Any) -> bool:
    if name == "uuid":
        return str(mine).lower() == str(theirs).lower()
    return same_bus(mine, theirs) if name == "pci" else bool(mine == theirs)


def _list(table: object, key: str) -> list[Any]:
    """The list at ``key`` as it is written, wrong items included: they have been told, the others are still looked at."""
    value = table.get(key) if isinstance(table, dict) else None
    return value if isinstance(value, list) else []


def _nvlink(at: _At, raw: object, count: int) -> None:
    used: dict[int, int] = {}
    for number, pair in enumerate(_list(raw, "pairs")):
        if not is_pair(pair):
            continue
        place = at("nvlink", "pairs").inside(f"[{number}]")
        if pair[0] == pair[1]:
            place.wrong(f"[{pair[0]}, {pair[1]}]", "is one GPU with itself (write e.g. [0, 1])")
            continue
        for gpu in pair:
            if gpu >= count:
                place.wrong(f"[{pair[0]}, {pair[1]}]", _beyond(gpu, count))
                break
            if gpu in used:
                place.wrong(
                    f"[{pair[0]}, {pair[1]}]", f"has GPU {gpu}, which is in pairs[{used[gpu]}] already (a bridge joins two cards)"
                )
            else:
                used[gpu] = number


def _beyond(gpu: int, count: int) -> str:
    there = f"positions 0 to {count - 1} only" if count else "no card"
    return f"has GPU {gpu}, but [[gpus]] has {there} (add the card, or correct the position)"


def _server(at: _At, server: dict[str, Any], raw: object, count: int) -> None:
    written = raw if isinstance(raw, dict) else {}
    ways = [name for name in CONTROLS if name in written]
    if len(ways) > 1:
        at("server", ways[1]).wrong(
            "", f"stands beside {ways[0]}: there is one way to start the server (keep one of {', '.join(ways)})"
        )
    for name in ("env", "cwd"):
        if name in written and "command" not in written:
            at("server", name).wrong("", "belongs to a command, and there is none (write command = [...], or leave it away)")
    gpus = _list(raw, "gpus")
    for number, gpu in enumerate(gpus):
        if not isinstance(gpu, int) or isinstance(gpu, bool) or gpu < 0:
            continue
        place = at("server", "gpus").inside(f"[{number}]")
        if gpu >= count:
            place.wrong(str(gpu), _beyond(gpu, count).replace(f"has GPU {gpu}", "is none of the cards", 1))
        elif gpu in gpus[:number]:
            place.wrong(str(gpu), "stands there twice (each GPU once)")
    tp = server.get("tp")
    if tp is not None and gpus and tp != len(gpus):
        at("server", "tp").wrong(
            str(tp), f"does not fit gpus, which has {len(gpus)} of them (write tp = {len(gpus)}, or correct gpus)"
        )


def _rows(at: _At, rows: list[dict[str, Any]], raw: object) -> None:
    written = raw if isinstance(raw, list) else []
    for position, (row, stands) in enumerate(zip(rows, written, strict=False)):
        if not any(name == "min" or name.startswith("max_") for name in stands):
            at("throughput", position=position).wrong("", "promises nothing: a target is only shown (write e.g. min = '38 tok/s')")
        least, target = row.get("min_tok_s"), row.get("target_tok_s")
        if least is not None and target is not None and target < least:
            at("throughput", "target", position).wrong(f"{target:g} tok/s", f"is below min, {least:g} tok/s (write min <= target)")
    for other in range(len(rows)):
        one = next((earlier for earlier in range(other) if _same_row(rows[earlier], rows[other])), None)
        if one is not None:
            means = "the same power, nvlink, streams and quantity"
            at("throughput", position=other).wrong("", f"is a second row for {means} as throughput[{one}] (keep one of them)")


def _same_row(one: dict[str, Any], other: dict[str, Any]) -> bool:
    # a row whose level could not be read has no power_w at all, one without a level has None
    keys = ("power_w", "nvlink", "streams", "quantity")
    if any(key not in one or key not in other for key in keys) or any(one[key] != other[key] for key in keys[1:]):
        return False
    mine, theirs = one["power_w"], other["power_w"]
    return mine is theirs if mine is None or theirs is None else abs(mine - theirs) < SAME_LEVEL_W


def _start(at: _At, start: dict[str, Any]) -> None:
    most = max((start[key] for key in ("cold_s", "warm_s") if start.get(key)), default=None)
    for phase, budget_s in start.get("phases_s", {}).items():
        if most is not None and isinstance(budget_s, float) and budget_s > most:
            at("start", "phases").inside(f".{phase}").wrong(
                units.duration(budget_s),
                f"is more than a whole start may take, {units.duration(most)} (give it less, or the start more)",
            )


def _gain(at: _At, gain: dict[str, Any]) -> None:
    for name in ("compile", "nvlink"):
        if f"{name}_baseline" in gain and f"{name}_gain_pct" not in gain:
            at("gain", f"{name}_baseline").wrong("", f"compares with nothing promised (write {name}_gain = '>= 15 %')")


def _workload(at: _At, workload: dict[str, Any]) -> None:
    if workload.get("api") == "chat" and workload.get("prompts") == "random-ids":
        at("workload", "prompts").wrong(
            "random-ids", "does not fit api = 'chat', which takes no token ids (write api = 'completions')"
        )
    default = Workload()
    rounds, most = workload.get("rounds", default.rounds), workload.get("max_rounds", default.max_rounds)
    if rounds > most:
        key = "rounds" if "rounds" in workload else "max_rounds"
        stands = "" if "max_rounds" in workload else ", the default"
        at("workload", key).wrong(
            "", f"contradicts the other: rounds = {rounds}, max_rounds = {most}{stands} (write rounds <= max_rounds)"
        )
