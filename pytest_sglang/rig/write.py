"""The rig file that ``init`` writes from a rig as it stands: what was found as keys, what was not as comments, nothing invented."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from pytest_sglang.record import units
from pytest_sglang.rig.errors import Problem
from pytest_sglang.rig.found import Found, FoundCache, FoundCard, FoundPair, FoundServer
from pytest_sglang.rig.keys import SCHEMA, TABLES
from pytest_sglang.rig.leaves import KNOWN_READINGS, Place

__all__ = ["Found", "FoundCache", "FoundCard", "FoundPair", "FoundServer", "render"]

_FAULT = "this may be a fault and not a promise"
_UNTOLD = "not found"


def render(found: Found) -> str:
    """A rig file that loads as it is: identity and present state as keys, promises of speed as comments to be edited."""
    blocks = [
        _head(found),
        _rig(found),
        *_cards(found),
        _nvlink(found),
        _server(found),
        _caches(found),
        _start(found),
        _throughput(found),
        _answers(found),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _text(value: str) -> str:
    """A TOML basic string; JSON's escapes are TOML's, but for DEL and what UTF-8 cannot hold."""
    kept = value.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(kept, ensure_ascii=False).replace("\x7f", "\\u007F")


def _remark(text: str) -> str:
    """One line that may stand in a comment: no control characters."""
    kept = text.encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", kept).strip()


def _comment(text: str) -> str:
    return f"# {_remark(text)}".rstrip()


def _line(key: str, value: str, note: str = "") -> str:
    return f"{key} = {value}" + (f"    # {_remark(note)}" if note else "")


def _absent(found: Found, path: str, example: str) -> str:
    """A key that was not found, as a comment that becomes right by taking the sign away: ``# log = "..."    # not found: why``."""
    reason = found.missing.get(path)
    return f"# {path.rpartition('.')[2]} = {example}    # {_remark(f'{_UNTOLD}: {reason}' if reason else _UNTOLD)}"


def _usable(table: str, key: str, value: object) -> bool:
    """The rig file's own reader would take ``value``: an odd value must not make a file that does not load."""
    problems: list[Problem] = []
    TABLES[table].keys[key].leaf(value, Place(Path(), key, problems))
    return not problems


def _head(found: Found) -> list[str]:
    lines = [
        "# Written by pytest-sglang init from this rig as it stands. A line with a key is a promise and is checked; a line that is",
        "# taken away is not promised, and what is not promised is not checked. Now edit: what must this rig be able to do?",
        f"schema = {SCHEMA}",
    ]
    if found.state:
        lines += ["", "# As it stands:", *(_comment(f"  {line.strip()}") for line in found.state)]
    if found.problems:
        lines += ["", f"# Looks wrong ({_FAULT}):", *(_comment(f"  {line.strip()}") for line in found.problems)]
    return lines


def _rig(found: Found) -> list[str]:
    lines = ["[rig]", _line("name", _text(found.name if found.name.strip() else "rig"))]
    total = sum(card.enforced_w or card.requested_w or 0.0 for card in found.cards)
    now = (
        f"what the power supply may be asked for; the limits now add up to {total:g} W"
        if total
        else "what the power supply may be asked for"
    )
    lines.append(_line("# max_total_w", f"{max(round(total), 1000)}", now))
    waived = {name.replace("-", "_"): why for name, why in found.unavailable.items() if name.replace("-", "_") in KNOWN_READINGS}
    if waived:
        lines.append(_line("unavailable", f"[{', '.join(_text(name) for name in waived)}]", "readings that this host cannot give"))
        lines += [_comment(f"  {name}: {why}") for name, why in waived.items()]
    else:
        lines.append('# unavailable = ["xid"]    # readings that this host cannot give and that you waive; none was found missing')
    return lines


# --- cards and links ----------------------------------------------------------------------------------------------------------


def _cards(found: Found) -> list[list[str]]:
    if not found.cards:
        why = found.missing.get("gpus")
        return [["# No GPU was found" + (f": {_remark(why)}" if why else "") + ". Without [[gpus]] there are no hardware checks."]]
    head = ["# The cards, by UUID since indices may move at a reboot. Pairs and server.gpus count them from 0 in this order."]
    levels = sorted({card.enforced_w for card in found.cards if card.enforced_w is not None})
    if len(levels) > 1:
        head.append(_comment(f"The cards enforce different power limits ({', '.join(f'{w:g} W' for w in levels)}): {_FAULT}."))
    return [[*(head if position == 0 else []), *_card(found, position, card)] for position, card in enumerate(found.cards)]


def _card(found: Found, position: int, card: FoundCard) -> list[str]:
    lines = ["[[gpus]]"]
    if _usable("gpus", "uuid", card.uuid):
        # the bus id as a second hint for people: a UUID says nothing about the slot
        lines.append(_line("uuid", _text(card.uuid), f"index {card.index}" + (f", bus {card.pci}" if card.pci else "")))
    elif card.pci is not None and _usable("gpus", "pci", card.pci):
        lines.append(_line("pci", _text(card.pci), f"index {card.index}"))
    else:
        lines.append(_line("index", str(card.index), "may move at a reboot: no UUID and no bus id was found"))
    named = card.name is not None and _usable("gpus", "name", card.name)
    lines.append(_line("name", _text(card.name or "")) if named else _absent(found, "gpus.name", '"NVIDIA GeForce RTX 3090"'))
    if card.persistence is None:
        lines.append(_absent(found, "gpus.persistence", "true"))
    else:
        off = f"off: a power limit is lost whenever the driver unloads; {_FAULT}"
        lines.append(_line("persistence", str(card.persistence).lower(), "" if card.persistence else off))
    lines += [_pcie_gen(found, card), _pcie_width(found, card), *_limits(card)]
    return lines


def _pcie_gen(found: Found, card: FoundCard) -> str:
    now, most = card.pcie_gen, card.pcie_max_gen
    best = now if card.loaded or most is None else most
    if best is None or not _usable("gpus", "pcie_gen", best):
        return _absent(found, "gpus.pcie_gen", "4")
    note = ""
    if now is not None and most is not None and now < most:
        note = (
            f"gen {now} of {most} under load: {_FAULT}" if card.loaded else f"its maximum; gen {now} now, to which idle cards drop"
        )
    elif most is None and not card.loaded:
        note = "its maximum was not found, and idle cards drop to gen 1"
    return _line("pcie_gen", str(best), note)


def _pcie_width(found: Found, card: FoundCard) -> str:
    width, most = card.pcie_width, card.pcie_max_width
    if width is None or not _usable("gpus", "pcie_width", width):
        return _absent(found, "gpus.pcie_width", "16")
    narrow = most is not None and width < most
    return _line("pcie_width", str(width), f"x{width} of x{most}: {_FAULT} (riser, slot, BIOS setting)" if narrow else "")


def _limits(card: FoundCard) -> list[str]:
    parts = [
        f"enforced {card.enforced_w:g} W" if card.enforced_w is not None else "",
        f"requested {card.requested_w:g} W" if card.requested_w not in (None, card.enforced_w) else "",
        f"default {card.default_w:g} W" if card.default_w is not None else "",
        f"range {card.min_w:g} to {card.max_w:g} W" if card.min_w is not None and card.max_w is not None else "",
    ]
    told = ", ".join(part for part in parts if part)
    return [_comment(f"power limit: {told} (the promised one is --power of each run)")] if told else []


def _nvlink(found: Found) -> list[str]:
    positions = {card.index: position for position, card in enumerate(found.cards)}
    up = [pair for pair in found.pairs if pair.links > 0 and pair.one != pair.other and {pair.one, pair.other} <= positions.keys()]
    ends = [end for pair in up for end in (pair.one, pair.other)]
    if not up:
        if not found.cards:
            return []
        why = found.missing.get("nvlink")
        said = f"NVLink was {_UNTOLD}: {why}" if why else "No NVLink link is up"
        return [
            _comment(f"{said}. If this rig has bridges, {_FAULT}: declare them."),
            "# [nvlink]",
            "# pairs = [[0, 1]]",
            "# links = 4",
        ]
    if len(set(ends)) < len(ends):
        return [
            _comment(
                "Cards with NVLink to more than one other (a switch, a mesh): not pairs of bridged cards, so nothing is promised."
            )
        ]
    lines = [
        "# The bridges. The declared state chooses the throughput row: a bridge that died fails its check and lowers no limit.",
        "[nvlink]",
    ]
    listed = ", ".join(f"[{positions[pair.one]}, {positions[pair.other]}]" for pair in up)
    best = max([pair.links for pair in up] + [pair.most for pair in up if pair.most is not None])
    worst = min(pair.links for pair in up)
    weak = [f"{pair.one}-{pair.other} has {pair.links} of {best} links" for pair in up if pair.links < best]
    alone = [str(card.index) for card in found.cards if card.index not in ends]
    lines.append(
        _line("pairs", f"[{listed}]", f"no link on GPU {', '.join(alone)}: a bridge may be missing or dead" if alone else "")
    )
    lines.append(_line("links", str(worst), f"{'; '.join(weak)}: {_FAULT} (a bridge that sits half)" if weak else "per pair"))
    return lines


# --- server and promises -----------------------------------------------------------------------------------------------------


def _server(found: Found) -> list[str]:
    server = found.server
    if server is None or not _usable("server", "url", server.url):
        why = found.missing.get("server") or (f"{server.url!r} is no usable URL" if server is not None else "")
        said = "No server was found" + (f": {why}" if why else "")
        return [_comment(f"{said}. Without [server] nothing of it is checked."), "# [server]", '# url = "http://127.0.0.1:30000"']
    lines = []
    if server.version:
        lines.append(_comment(f"SGLang {server.version}"))
    if server.argv:
        lines.append(_comment(f"running as: {' '.join(server.argv)}"))
    lines += ["[server]", _line("url", _text(server.url))]
    for key, value, example in (
        ("model", server.model, '"/models/my-model"'),
        ("served_name", server.served_name, '"my-model"'),
    ):
        known = value is not None and _usable("server", key, value)
        lines.append(_line(key, _text(value or "")) if known else _absent(found, f"server.{key}", example))
    lines += _parallel(found, server)
    if server.torch_compile is None:
        lines.append(_absent(found, "server.torch_compile", "true"))
    else:
        lines.append(_line("torch_compile", str(server.torch_compile).lower()))
    if server.api_key_needed:
        lines.append('api_key_env = "SGLANG_API_KEY"    # the server asks for a key: export it under this name')
    if server.log is not None and _usable("server", "log", server.log):
        lines.append(_line("log", _text(server.log)))
    else:
        lines.append(_absent(found, "server.log", '"/var/log/sglang/sglang.log"'))
    return [*lines, *_control(found, server)]


def _parallel(found: Found, server: FoundServer) -> list[str]:
    """``tp`` and ``gpus``; the rig file wants one GPU a rank, so of two that do not fit only tp is promised."""
    positions = {card.index: position for position, card in enumerate(found.cards)}
    known = server.gpus is not None and set(server.gpus) <= positions.keys() and len(set(server.gpus)) == len(server.gpus) > 0
    here = [positions[index] for index in server.gpus or ()] if known else []
    tp = server.tp if server.tp is not None and server.tp > 0 else None
    lines = [_line("tp", str(tp)) if tp is not None else _absent(found, "server.tp", str(len(here) or 1))]
    listed = f"[{', '.join(map(str, here))}]"
    if known and tp in (None, len(here)):
        lines.append(_line("gpus", listed, "positions in [[gpus]]"))
        if server.exclusive is not None:
            shared = "" if server.exclusive else "# "
            now = "nobody else computes on them" if server.exclusive else f"somebody else computes on them: {_FAULT}"
            lines.append(_line(f"{shared}exclusive", "true", now))
    elif known:
        said = f"it runs on cards {listed}, which are not {tp}, one a rank (data or pipeline parallel?): not promised"
        lines.append(_comment(f"gpus: {said}"))
    elif found.cards:
        lines.append(_absent(found, "server.gpus", f"[{', '.join(map(str, range(min(tp or 1, len(found.cards)))))}]"))
    return lines


def _control(found: Found, server: FoundServer) -> list[str]:
    """At most one way of starting it; the others stay comments."""
    if server.systemd is not None and _usable("server", "systemd", server.systemd):
        return [_line("systemd", _text(server.systemd), "the unit that it runs in: restarts go through systemctl")]
    if server.container is not None and _usable("server", "container", server.container):
        return [_line("container", _text(server.container), "restarts go through docker or podman")]
    why = found.missing.get("server.systemd")
    lines = [
        "# How to start it again was "
        + _UNTOLD
        + (f": {_remark(why)}" if why else "")
        + ". Without one of these it is only watched."
    ]
    return [
        *lines,
        '# systemd = "sglang.service"',
        '# or command = ["bash", "serve.sh"], with cwd and env; or container = "sglang"',
    ]


def _caches(found: Found) -> list[str]:
    if not found.caches:
        return []
    lines = ["# Where its compiled kernels are (looked up anew in each run; nothing to edit):"]
    for cache in found.caches:
        size = "" if cache.files is None else f", {cache.files} files"
        size += "" if cache.bytes is None else f", {cache.bytes / 2**20:.1f} MiB"
        lines.append(_comment(f"  {cache.name}: {cache.path}{size}" + (f" ({cache.note})" if cache.note else "")))
    return lines


def _start(found: Found) -> list[str]:
    if found.server is None:
        return []
    took = found.server.ready_s
    said = (
        f"Budgets of a start. The one that the server had took {units.duration(took)}."
        if took is not None
        else "Budgets of a start."
    )
    return [
        _comment(f"{said} Take the signs away from what you promise:"),
        "# [start]",
        '# cold = "25 min"    # nothing compiled yet',
        '# warm = "90 s"    # everything compiled before',
        '# silence = "5 min"    # no sign of progress for so long is a hang',
        "# max_autotune_runs = 0    # of a warm start",
        "# max_new_kernels = 0    # kernel names that a warm start may add",
    ]


def _throughput(found: Found) -> list[str]:
    if found.server is None:
        return []
    level = _level(found.cards)
    lines = [
        "# What a stream must get at a power level: one table a level. Measure first, then promise what you want to keep.",
        "# [[throughput]]",
    ]
    if level is not None:
        lines.append(_line("# power", f"{level:g}", "the limit enforced now"))
    if found.cards:
        lines.append(_line("# nvlink", str(_declares(found)).lower(), "the declared state that this row is for"))
    return [
        *lines,
        "# streams = 1",
        '# quantity = "decode"',
        '# min = "1 tok/s"    # an example, not a measurement: put in your own',
    ]


def _answers(found: Found) -> list[str]:
    if found.server is None or not _usable("server", "url", found.server.url):
        return []
    return [
        "# The tokens stay right: six fixed prompts, 32 tokens each, answered alike after every start of a run, but for near ties.",
        "[answers]",
        '# expect = [{ prompt = "The capital of France is", contains = "Paris" }]    # what your model must know',
    ]


def _level(cards: Sequence[FoundCard]) -> float | None:
    levels = [card.enforced_w for card in cards if card.enforced_w is not None and card.enforced_w > 0]
    return max(set(levels), key=levels.count) if levels else None


def _declares(found: Found) -> bool:
    return "[nvlink]" in _nvlink(found)
