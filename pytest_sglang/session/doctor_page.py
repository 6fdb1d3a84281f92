"""What the doctor saw, as a page of at most 80 columns: for a person, for a terminal, for ``watch``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80
REASONS = {
    "gpu_idle": "idle",
    "applications_clocks_setting": "clock setting",
    "sw_power_cap": "power limit",
    "hw_slowdown": "HARDWARE SLOWDOWN",
    "sync_boost": "SYNC BOOST",
    "sw_thermal_slowdown": "HEAT (software)",
    "hw_thermal_slowdown": "HEAT (hardware)",
    "hw_power_brake_slowdown": "POWER BRAKE",
    "display_clock_setting": "display clock",
    "board_limit": "BOARD LIMIT",
    "reliability": "voltage limit",
}
"""Clocks event reasons in words; capitals: a fault."""
NOT_SUPPORTED, NOT_READABLE = "n/s", "?"

Sheet = Mapping[str, Any]


def lines(seen: Mapping[str, Any]) -> list[str]:
    """The page."""
    cards = [each for each in seen["gpus"] if each["lost"] is None]
    out = [*_wrapped(_head(seen)), ""]
    if cards:
        out += [*_now(cards), "", *_clocks(cards), "", *_settings(cards), ""]
    gone = [f"GPU {each['index']} {each['lost']}" for each in seen["gpus"] if each["lost"] is not None]
    out += [line for each in gone for line in _wrapped(each, "  ")] + ([""] if gone else [])
    out += [*_links(seen["nvlink"], [each["index"] for each in cards]), ""]
    out += [*_processes(seen["processes"]), ""]
    out += [*_notes(cards), *_findings(seen["findings"])]
    return [line.rstrip() for line in out]


def _head(seen: Mapping[str, Any]) -> str:
    parts = [
        "SIMULATED rig, nothing here is real hardware" if seen["simulated"] else "",
        f"rig file of {seen['rig']}" if seen["rig"] else "no rig file: nothing is promised",
        f"driver {seen['driver']}",
        f"CUDA {seen['cuda']}" if seen["cuda"] else "",
        f"kernel {seen['kernel']}",
        f"{len(seen['gpus'])} GPU(s)",
    ]
    return " · ".join(part for part in parts if part)


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _cell(sheet: Sheet, name: str, form: str = "{}") -> str:
    value = sheet.get(name)
    if value is None:
        return NOT_SUPPORTED if name in sheet["unsupported"] else NOT_READABLE
    return form.format(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Columns as wide as their widest cell; ``right``: one letter a column, r or l."""
    widths = [max(len(str(each)) for each in column) for column in zip(heads, *rows, strict=True)]
    table = []
    for row in (heads, *rows):
        cells = [
            cell.rjust(width) if side == "r" else cell.ljust(width) for cell, width, side in zip(row, widths, right, strict=True)
        ]
        table.append("  ".join(cells))
    return table


def _name(sheet: Sheet) -> str:
    shown = _cell(sheet, "name").removeprefix("NVIDIA ").replace("GeForce ", "")
    return shown if len(shown) <= 18 else shown[:17] + "…"


def _now(cards: Sequence[Sheet]) -> list[str]:
    rows = []
    for each in cards:
        draw = _cell(each, "power_instant_w" if each["power_instant_w"] is not None else "power_average_w", "{:.0f}")
        used, total = each["memory_used_bytes"], each["memory_total_bytes"]
        memory = f"{used / 2**30:.1f} of {total / 2**30:.1f} GiB" if used is not None and total is not None else NOT_READABLE
        rows.append(
            [
                str(each["index"]),
                each["pci"] or "?",
                _name(each),
                f"{draw} of {_cell(each, 'enforced_power_limit_w', '{:.0f}')} W",
                _cell(each, "temperature_c", "{} C"),
                _cell(each, "utilization_pct", "{} %"),
                memory,
            ]
        )
    return _table(["GPU", "bus", "name", "draw", "temp", "busy", "memory"], rows, "rllrrrr")


def _clocks(cards: Sequence[Sheet]) -> list[str]:
    rows = []
    for each in cards:
        reasons = each["reasons"]
        held = _cell(each, "reasons") if reasons is None else ", ".join(REASONS.get(name, name) for name in reasons) or "nothing"
        rows.append(
            [
                str(each["index"]),
                f"{_cell(each, 'sm_mhz')} of {_cell(each, 'max_sm_mhz')}",
                f"{_cell(each, 'mem_mhz')} of {_cell(each, 'max_mem_mhz')}",
                _cell(each, "performance_state", "P{}"),
                f"{_cell(each, 'pcie_gen', 'gen {}')} {_cell(each, 'pcie_width', 'x{}')}",
                f"{_cell(each, 'pcie_max_gen', 'gen {}')} {_cell(each, 'pcie_max_width', 'x{}')}",
                _short(held, 20),
            ]
        )
    return _table(["GPU", "SM MHz", "memory MHz", "P", "PCIe now", "can be", "held by"], rows, "rrrllll")


def _settings(cards: Sequence[Sheet]) -> list[str]:
    rows = []
    for each in cards:
        on = {True: "on", False: "OFF"}.get(each["persistence"], _cell(each, "persistence"))
        ecc = {True: "on", False: "off"}.get(each["ecc"], _cell(each, "ecc"))
        low, high = _cell(each, "min_power_limit_w", "{:.0f}"), _cell(each, "max_power_limit_w", "{:.0f}")
        rows.append(
            [
                str(each["index"]),
                _cell(each, "requested_power_limit_w", "{:.0f} W"),
                _cell(each, "default_power_limit_w", "{:.0f} W"),
                f"{low}-{high} W",
                on,
                ecc,
                _cell(each, "ecc_uncorrected"),
                _rows(each),
                _cell(each, "pcie_replays"),
            ]
        )
    heads = ["GPU", "asked", "default", "range", "persistence", "ECC", "errors", "rows", "replays"]
    return _table(heads, rows, "rrrrllrlr")


def _rows(sheet: Sheet) -> str:
    if sheet["remapped_rows"] is None:
        return _cell(sheet, "remapped_rows")
    corrected, uncorrected, pending, failed = sheet["remapped_rows"]
    count = corrected + uncorrected
    return "FAILED" if failed else "PENDING" if pending else f"{count} remapped" if count else "ok"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _links(nvlink: Mapping[str, Any], indices: Sequence[int]) -> list[str]:
    out = []
    pairs = nvlink["pairs"]
    if nvlink["switched"] and pairs:
        counts = sorted({each["links"] for each in pairs})
        out.append(f"NVLink: over switches, {' or '.join(map(str, counts))} links between every two of {len(indices)} GPUs")
    elif pairs:
        told = [f"GPU {each['gpus'][0]}-{each['gpus'][1]} {each['links']} links{_speed(each)}" for each in pairs]
        out += _wrapped(f"NVLink: {'; '.join(told)}", "        ")
    else:
        reasons = sorted(set(nvlink["unreadable"].values()))
        out += _wrapped(f"NVLink: none ({'; '.join(reasons) or 'no link is up'})", "        ")
    # mended checksum errors are told in one note below: 72 links have some
    repeats = {label: count for label, count in nvlink["errors"].items() if not label.endswith(("crc flit", "crc data"))}
    if repeats:
        shown = ", ".join(f"{label} {count}" for label, count in repeats.items())
        out += _wrapped(f"NVLink errors since the driver was loaded: {shown}", "        ")
    if len(indices) > 1:
        heads = ["", *(f"GPU{index}" for index in indices)]
        rows = [[f"GPU{index}", *cells] for index, cells in zip(indices, nvlink["matrix"], strict=True)]
        out += ["", *_table(heads, rows, "l" * len(heads))]
    return out


def _speed(pair: Mapping[str, Any]) -> str:
    return f" of {pair['mbyte_s'] / 1000:.1f} GB/s" if pair["mbyte_s"] is not None else ""


def _processes(beings: Sequence[Mapping[str, Any]]) -> list[str]:
    if not beings:
        return ["no process on the cards (or the driver hides them, as in a container)"]
    rows = []
    for each in beings:
        who = "the server" if each["server"] else "display" if each["kind"] == "graphics" else ""
        used = "" if each["used_bytes"] is None else f"{each['used_bytes'] / 2**20:.0f} MiB"
        rows.append([str(each["gpu"]), str(each["pid"]), _short(each["name"], 36), used, who])
    return _table(["GPU", "pid", "process", "memory", ""], rows, "rrlrl")


def _notes(cards: Sequence[Sheet]) -> list[str]:
    """Readings that are missing for other reasons than that the card has none of them."""
    told: dict[str, list[str]] = {}
    for each in cards:
        for name, reason in each["unreadable"].items():
            if name not in each["unsupported"]:
                told.setdefault(f"{name}: {reason}", []).append(str(each["index"]))
    out = [line for text, where in told.items() for line in _wrapped(f"? GPU {', '.join(where)}: {text}", "  ")]
    used = any(each["unsupported"] for each in cards)
    return [*out, *(["n/s: this card, driver or container does not support it"] if used else []), ""]


def _findings(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    out = []
    for each in findings:
        word = {"fail": "FAULT  ", "warn": "WARNING", "info": "note   "}[each["severity"]]
        out += _wrapped(f"{word}  {each['subject']}: {each['detail']}", " " * 9)
        if each["remedy"] and each["severity"] != "info":
            out += textwrap.wrap(
                f"-> {each['remedy']}", WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 12, break_long_words=False
            )
    faults = sum(each["severity"] == "fail" for each in findings)
    warnings = sum(each["severity"] == "warn" for each in findings)
    if not faults and not warnings:
        return [*out, "nothing looks wrong"]
    return [*out, f"{faults} fault(s), {warnings} warning(s)"]
