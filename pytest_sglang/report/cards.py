"""The cards of a run for a drawing: which the server uses, how they are joined, and what of that was promised. Pure; draws nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations, pairwise
from typing import Any, Literal

from pytest_sglang.judge.placement import groups as groups_of
from pytest_sglang.record.run import Run
from pytest_sglang.record.values import Value

JoinState = Literal["up", "extra", "partial", "down", "unusable", "unknown"]
BAD: frozenset[str] = frozenset({"partial", "down", "unusable"})
_NEARNESS = ("PSB", "PIX", "PXB", "PHB", "NODE", "SYS")
_USABLE = frozenset({None, "OK", "U"})
"""Peer-to-peer states that say nothing against using a link; "U" and None = the driver does not tell."""


class Row(Value, frozen=True, kw_only=True):
    """One card. ``pcie_short``: less than promised. ``standing``: what there is to say of it beside its name."""

    key: int | str
    label: str
    name: str = ""
    pcie: str = ""
    pcie_short: bool = False
    links: int = 0
    links_up: int = 0
    switched: int = 0
    standing: Literal["there", "lost", "absent"] = "there"
    why: str = ""


class Section(Value, frozen=True, kw_only=True):
    """Cards that stand together: a group of the server (``used``; ``sure`` False: only promised), or others; ``idle``: not its own."""

    title: str
    rows: tuple[Row, ...]
    used: bool = True
    sure: bool = True
    idle: bool = False


class Join(Value, frozen=True, kw_only=True):
    """NVLink between two cards, by their keys. ``links`` None = not known; ``promised`` None = it is not promised."""

    one: int | str
    other: int | str
    state: JoinState
    links: int | None = None
    promised: int | None = None
    text: str = ""
    more: str = ""


class Crossing(Value, frozen=True, kw_only=True):
    """Two neighbours of a group between which the group's traffic crosses PCIe."""

    one: int | str
    other: int | str
    text: str
    more: str = ""


class Plan(Value, frozen=True, kw_only=True):
    """All that is drawn. ``fabric``: cards on NVSwitches, by key; ``fabric_off``: why no program may use them. ``paths``: nvidia-smi's name of the way between every two cards."""

    sections: tuple[Section, ...]
    joins: tuple[Join, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    fabric: tuple[int | str, ...] = ()
    fabric_promised: int | None = None
    fabric_off: str = ""
    paths: dict[tuple[int, int], str] = {}
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """Cards from top to bottom."""
        return tuple(row for section in self.sections for row in section.rows)


def plan(run: Run) -> Plan | None:
    """The plan of a run; None where its record tells of no card. Raises KeyError and kin for a foreign record."""
    seen = run.topology if run.topology.get("cards") else _of_old_record(run)
    if not seen["cards"] and not seen["absent"]:
        return None
    rows = [_row(each, run) for each in seen["cards"]]
    rows += [Row(key=f"entry {each['entry']}", label=str(each["label"]), standing="absent") for each in seen["absent"]]
    fabric = tuple(row.key for row in rows if row.switched)
    waived = "nvlink" in (run.rig.get("unavailable") or ())
    promised = {} if waived else _promised(seen, rows)
    joins = _joins(seen, promised, set(fabric))
    off = _unusable_fabric(seen, set(fabric))
    usable = {(each.one, each.other) for each in joins if each.links and each.state != "unusable"}
    linked = usable | (set() if off else set(combinations(fabric, 2)))
    near = linked | {(each.one, each.other) for each in joins}
    sections = _sections(run, seen, rows, near)
    paths = {(each["gpus"][0], each["gpus"][1]): each for each in seen["paths"]}
    # a card without NVLink has none to anybody; that is known, though nothing can be read
    bare = {each["index"] for each in seen["cards"] if each.get("links_unsupported")}
    crossings = [each for section in sections if section.used for each in _crossings(section, linked, paths, bare)]
    wanted = [count for pair, count in promised.items() if set(pair) <= set(fabric)]
    return Plan(
        sections=tuple(sections),
        joins=tuple(joins),
        crossings=tuple(crossings),
        fabric=fabric,
        fabric_promised=max(wanted, default=None),
        fabric_off=off,
        paths={pair: f"NV{each['links']}" if each["links"] else each["path"] or "?" for pair, each in paths.items()},
        notes=tuple(_notes(seen, sections, joins, linked)),
    )


# --- cards -------------------------------------------------------------------------------------------------------------------


def _row(card: Mapping[str, Any], run: Run) -> Row:
    index, lost = card["index"], card.get("lost")
    named = str(card.get("name") or "name not readable").removeprefix("NVIDIA ").replace("GeForce ", "")
    entries, entry = run.rig.get("gpus") or [], card.get("entry")
    promise = entries[entry] if entry is not None and entry < len(entries) else {}
    text, short = ("", False) if lost else _pcie(card, {} if "pcie" in (run.rig.get("unavailable") or ()) else promise)
    why = str(lost) if lost else "" if entry is not None or not entries else "not in the rig file"
    return Row(
        key=index,
        label=f"GPU {index}",
        name=named if len(named) <= 21 else f"{named[:20]}…",
        pcie=text,
        pcie_short=short,
        links=card.get("links") or 0,
        links_up=card.get("links_up") or 0,
        switched=card.get("links_to_switch") or 0,
        standing="lost" if lost else "there",
        why=why,
    )


def _pcie(card: Mapping[str, Any], promise: Mapping[str, Any]) -> tuple[str, bool]:
    """PCIe as read under load where it was, else as it is now (the generation drops when idle), and whether it falls short."""
    loaded = card.get("load_pcie_gen") is not None or card.get("load_pcie_width") is not None
    gen, width = (
        (card.get("load_pcie_gen"), card.get("load_pcie_width")) if loaded else (card.get("pcie_gen"), card.get("pcie_width"))
    )
    most_gen, most_width = card.get("pcie_max_gen"), card.get("pcie_max_width")
    if gen is None and width is None and most_gen is None:
        return "PCIe not readable", False
    # an idle card's generation says nothing of its link
    short = [
        value is not None and wanted is not None and value < wanted
        for value, wanted in ((gen if loaded else most_gen, promise.get("pcie_gen")), (width, promise.get("pcie_width")))
    ]
    now = " under load" if loaded else " now"
    if any(short):
        wanted = _link(promise.get("pcie_gen"), promise.get("pcie_width"), None, None)
        return f"PCIe {_link(gen if loaded else most_gen, width, None, None)}, promised {wanted}", True
    whole = (gen, width) == (most_gen, most_width) and not loaded
    return f"PCIe {_link(gen, width, most_gen, most_width)}{'' if whole else now}", False


def _link(gen: int | None, width: int | None, most_gen: int | None, most_width: int | None) -> str:
    """ "gen 1 of 4, x16": what is, and what could be where that is more."""
    parts = [
        f"gen {'?' if gen is None else gen}{f' of {most_gen}' if most_gen not in (None, gen) else ''}" if gen or most_gen else "",
        f"x{'?' if width is None else width}{f' of {most_width}' if most_width not in (None, width) else ''}"
        if width or most_width
        else "",
    ]
    return ", ".join(each for each in parts if each) if most_gen else " ".join(each for each in parts if each)


# --- links -------------------------------------------------------------------------------------------------------------------


def _promised(seen: Mapping[str, Any], rows: Iterable[Row]) -> dict[tuple[int | str, int | str], int]:
    """Promised links by keys of cards, those that are not there included; 1 where only the pair is promised."""
    keys = {row.key for row in rows}
    found: dict[tuple[int | str, int | str], int] = {}
    for each in seen["promised"]:
        ends = [
            entry if entry is not None else f"entry {place}" for entry, place in zip(each["gpus"], each["entries"], strict=True)
        ]
        if set(ends) <= keys:
            one, other = sorted(ends, key=lambda key: (isinstance(key, str), key))
            found[one, other] = each["links"] or 1
    return found


def _joins(seen: Mapping[str, Any], promised: Mapping[tuple[int | str, int | str], int], fabric: set[int | str]) -> list[Join]:
    by_pair: dict[tuple[int | str, int | str], Mapping[str, Any]] = {tuple(each["gpus"]): each for each in seen["paths"]}
    first = {tuple(each["gpus"]): each.get("links") for each in seen.get("first_paths") or ()}
    joins = []
    for pair in dict.fromkeys((*promised, *(pair for pair, each in by_pair.items() if each["links"]))):
        if set(pair) <= fabric:
            continue
        path = by_pair.get(pair, {})
        gone = any(isinstance(key, str) for key in pair)
        joins.append(_join(pair, 0 if gone else path.get("links"), promised.get(pair), path.get("p2p_nvlink"), first.get(pair)))
    return joins


def _join(pair: tuple[int | str, int | str], links: int | None, wanted: int | None, p2p: str | None, before: int | None) -> Join:
    def made(state: JoinState, text: str, more: str = "") -> Join:
        return Join(one=pair[0], other=pair[1], state=state, links=links, promised=wanted, text=text, more=more)

    count = "" if links is None else f"{links} link{'s' if links != 1 else ''}"
    then = f"{before} when the run began" if before not in (None, links) else ""
    if links is None:
        return made("unknown", "NVLink not read", _wanted(wanted))
    if links == 0:
        return made("down", "NVLink down", then or _wanted(wanted))
    if wanted is not None and links < wanted:
        return made("partial", f"{count} up", f"{wanted} promised{f', {then}' if then else ''}")
    if p2p not in _USABLE:
        return made("unusable", f"{count} up, unusable", f"peer-to-peer: {p2p}")
    return made("up", count, then or "as promised") if wanted is not None else made("extra", count, then or "not promised")


def _wanted(links: int | None) -> str:
    return "" if links is None else f"{links} link{'s' if links != 1 else ''} promised"


def _unusable_fabric(seen: Mapping[str, Any], fabric: set[int | str]) -> str:
    """Links to the switches are up, but peers may not use them (no fabric manager, say): their peer-to-peer states."""
    states = {each.get("p2p_nvlink") for each in seen["paths"] if set(each["gpus"]) <= fabric} - _USABLE
    return ", ".join(sorted(map(str, states)))


def _crossings(
    section: Section, linked: set[tuple[Any, Any]], paths: Mapping[tuple[int, int], Mapping[str, Any]], bare: set[int]
) -> list[Crossing]:
    """Neighbours in a group that belong to different islands of NVLink."""
    rows = [row for row in section.rows if row.standing == "there"]
    islands = _islands([row.key for row in rows], linked)
    found = []
    for above, below in pairwise(rows):
        one, other = islands[above.key], islands[below.key]
        if one == other:
            continue
        between = [paths.get(_pair(a, b), {}) for a in islands for b in islands if islands[a] == one and islands[b] == other]
        levels = sorted({str(each["path"]) for each in between if each.get("path") in _NEARNESS}, key=_NEARNESS.index)
        states = {str(each["p2p_read"]) for each in between if each.get("p2p_read") not in (None, "U")}
        refused = ", ".join(sorted(states - {"OK"}))
        more = f"no peer-to-peer ({refused})" if refused else "peer-to-peer" if states else ""
        known = bool(between) and all(each.get("links") is not None or bare & set(each.get("gpus") or ()) for each in between)
        text = f"over PCIe{f' ({levels[-1]})' if levels else ''}" if known else "link not known"
        found.append(Crossing(one=above.key, other=below.key, text=text, more=more))
    return found


def _pair(one: Any, other: Any) -> Any:
    return (one, other) if one < other else (other, one)


def _islands(keys: list[Any], linked: set[tuple[Any, Any]]) -> dict[Any, int]:
    """Number of the island of each card: cards that links lead between, one after the other."""
    number = {key: place for place, key in enumerate(keys)}
    for one, other in linked:
        if one in number and other in number and number[one] != number[other]:
            low, high = sorted((number[one], number[other]))
            number = {key: low if each == high else each for key, each in number.items()}
    return number


# --- the server's place -----------------------------------------------------------------------------------------------------


def _sections(run: Run, seen: Mapping[str, Any], rows: list[Row], near: set[tuple[Any, Any]]) -> list[Section]:
    serving = seen["serving"]
    sure = "gpus" in serving
    groups = [tuple(each) for each in serving.get("groups") or ()]
    if not groups and serving.get("promised"):
        groups = list(groups_of(serving["promised"], serving.get("tp")))
    by_key = {row.key: row for row in rows}
    used = {key for group in groups for key in group}
    sections = []
    for number, group in enumerate(groups, 1):
        title = _title(len(group), number if len(groups) > 1 else None, sure)
        sections.append(Section(title=title, rows=_ordered([by_key[key] for key in group if key in by_key], near), sure=sure))
    gone = [row for row in rows if row.standing == "absent"]
    sections.append(Section(title="promised, not found", rows=tuple(gone), used=False))
    rest = [row for row in rows if row.key not in used and row.standing != "absent"]
    title = "not used by the server" if groups and sure else "not promised to the server" if groups else ""
    if not groups and serving:
        title = "where the server runs is not known"
    sections.append(Section(title=title, rows=_ordered(rest, near), used=False, idle=bool(groups)))
    return [each for each in sections if each.rows]


def _title(size: int, number: int | None, sure: bool) -> str:
    what = "the server's card" if size == 1 and number is None else f"tensor parallel group{f' {number}' if number else ''}"
    return f"{what} (promised)" if not sure else f"{what}, {size} cards" if size > 1 else what


def _ordered(rows: list[Row], near: set[tuple[Any, Any]]) -> tuple[Row, ...]:
    """Joined cards beside one another, else by index."""
    islands = _islands([row.key for row in rows], near)
    return tuple(sorted(rows, key=lambda row: (islands[row.key], str(row.key).zfill(4))))


def _notes(seen: Mapping[str, Any], sections: list[Section], joins: list[Join], linked: set[tuple[Any, Any]]) -> list[str]:
    serving, notes = seen["serving"], []
    if "unreadable" in serving:
        notes.append(f"where the server runs was not read: {serving['unreadable']}")
    elif serving.get("promised") and sorted(serving["promised"]) != sorted(serving["gpus"]):
        notes.append(f"the server was promised to run on GPUs {', '.join(map(str, serving['promised']))}")
    bad = [each for each in joins if each.state in BAD]
    if bad:
        notes.append(f"{len(bad)} of {sum(each.promised is not None for each in joins)} promised bridges not as promised")
    bare = {each["index"] for each in seen["cards"] if each.get("links_unsupported")}
    known = {tuple(each["gpus"]) for each in seen["paths"] if each["links"] is not None or bare & set(each["gpus"])}
    for section in sections:
        pairs = list(combinations(sorted(row.key for row in section.rows if isinstance(row.key, int)), 2)) if section.used else []
        apart = [pair for pair in pairs if pair not in linked and pair in known]
        if apart:
            group = "the group" if sum(each.used for each in sections) == 1 else section.title.partition(",")[0]
            notes.append(f"{len(apart)} of {len(pairs)} pairs of {group} exchange over PCIe")
    if seen.get("links_unreadable"):
        notes.append(f"links not readable: {seen['links_unreadable']}")
    broken = {
        str(each["links_unreadable"])
        for each in seen["cards"]
        if each.get("links_unreadable") and not each.get("links_unsupported")
    }
    notes += [f"NVLink not readable: {each}" for each in sorted(broken)]
    hidden = [each["index"] for each in seen["cards"] if each.get("links_to_unknown")]
    if hidden:
        notes.append(f"the driver does not tell where links of GPU {', '.join(map(str, hidden))} lead")
    if seen.get("not_read_again"):
        notes.append(f"as the run began; not readable at its end: {seen['not_read_again']}")
    return notes


# --- records without a topology ----------------------------------------------------------------------------------------------


def _of_old_record(run: Run) -> dict[str, Any]:
    """What fingerprint, promise and checks of an older record tell, in the form of ``run.topology``."""
    entries = run.rig.get("gpus") or []
    cards = [{**each, "entry": _entry(entries, each), "load_pcie_gen": None} for each in run.environment.get("gpus") or []]
    index = {each["entry"]: each["index"] for each in cards if each["entry"] is not None}
    nvlink = run.rig.get("nvlink") or {}
    promised: list[dict[str, Any]] = [
        {"entries": list(pair), "gpus": [index.get(each) for each in pair], "links": nvlink.get("links")}
        for pair in nvlink.get("pairs") or []
    ]
    checks = {each.id: each for each in run.checks}
    held = "nvlink" in checks and checks["nvlink"].verdict == "pass"
    paths = [
        {"gpus": sorted(each["gpus"]), "links": (each["links"] or 1) if held else None, "path": None}
        for each in promised
        if None not in each["gpus"]
    ]
    absent = [{"entry": place, "label": f"entry {place}"} for place in range(len(entries)) if place not in index] if cards else []
    reason = None if held or not promised else "not in this record"
    return {
        "cards": cards,
        "absent": absent,
        "promised": promised,
        "paths": paths,
        "serving": _old_serving(run, index),
        "links_unreadable": reason,
    }


def _old_serving(run: Run, index: Mapping[Any, Any]) -> dict[str, Any]:
    server = run.rig.get("server")
    if not server:
        return {}
    wanted = [index[each] for each in server["gpus"] if each in index] if server.get("gpus") else sorted(index.values())
    told: dict[str, Any] = {"promised": wanted, "tp": server.get("tp")}
    found = next((each.measured.get("gpus") for each in run.checks if each.id == "placement"), None)
    if found is None or not isinstance(found.value, str):
        return {**told, "unreadable": "not in this record"}
    gpus = [int(each) for each in found.value.split(",")]
    return {**told, "gpus": gpus, "groups": groups_of(gpus, server.get("tp"))}


def _entry(entries: list[Mapping[str, Any]], card: Mapping[str, Any]) -> int | None:
    for place, entry in enumerate(entries):
        uuid = str(entry.get("uuid") or "").lower()
        by_uuid = bool(uuid) and str(card.get("uuid")).lower().startswith(uuid)
        if by_uuid or (entry.get("index") is not None and entry["index"] == card["index"]):
            return place
        if entry.get("pci") and str(entry["pci"]).lower().removeprefix("0000:") in str(card.get("pci")):
            return place
    return None
