"""On a machine with real cards: every reading of the doctor beside nvidia-smi's of the same minute, as a table. Changes nothing.

usage: real_card.py [FOLDER]      (FOLDER: where to keep nvidia-smi's answers and the doctor's, for evidence)

Exit code 1 where a reading differs. What moves by itself (watts, clocks, temperature) is read twice and must lie near.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytest_sglang.gpu.power import run_command
from pytest_sglang.session import doctor

NEAR: dict[str, float] = {
    "power_average_w": 15.0,
    "power_instant_w": 40.0,
    "temperature_c": 2.0,
    "sm_mhz": 60.0,
    "utilization_pct": 30.0,
    "memory_used_bytes": 64 * 2**20,
    "energy_j": 1e9,
}
"""How far apart two looks at what moves may lie."""
PATHS: dict[str, str] = {
    "name": "product_name",
    "uuid": "uuid",
    "serial": "serial",
    "vbios": "vbios_version",
    "persistence": "persistence_mode",
    "mig": "mig_mode/current_mig",
    "requested_power_limit_w": "gpu_power_readings/requested_power_limit",
    "enforced_power_limit_w": "gpu_power_readings/current_power_limit",
    "default_power_limit_w": "gpu_power_readings/default_power_limit",
    "min_power_limit_w": "gpu_power_readings/min_power_limit",
    "max_power_limit_w": "gpu_power_readings/max_power_limit",
    "power_average_w": "gpu_power_readings/average_power_draw",
    "power_instant_w": "gpu_power_readings/instant_power_draw",
    "temperature_c": "temperature/gpu_temp",
    "sm_mhz": "clocks/sm_clock",
    "max_sm_mhz": "max_clocks/sm_clock",
    "mem_mhz": "clocks/mem_clock",
    "max_mem_mhz": "max_clocks/mem_clock",
    "performance_state": "performance_state",
    "utilization_pct": "utilization/gpu_util",
    "memory_total_bytes": "fb_memory_usage/total",
    "pcie_gen": "pci/pci_gpu_link_info/pcie_gen/current_link_gen",
    "pcie_max_gen": "pci/pci_gpu_link_info/pcie_gen/max_link_gen",
    "pcie_width": "pci/pci_gpu_link_info/link_widths/current_link_width",
    "pcie_max_width": "pci/pci_gpu_link_info/link_widths/max_link_width",
    "pcie_replays": "pci/replay_counter",
    "ecc": "ecc_mode/current_ecc",
}
"""Where ``nvidia-smi -q -x`` has each reading of the doctor."""
REASONS: dict[str, str] = {
    "gpu_idle": "gpu_idle",
    "applications_clocks_setting": "applications_clocks_setting",
    "sw_power_cap": "sw_power_cap",
    "hw_slowdown": "hw_slowdown",
    "sync_boost": "sync_boost",
    "sw_thermal_slowdown": "sw_thermal_slowdown",
    "hw_thermal_slowdown": "hw_thermal_slowdown",
    "hw_power_brake_slowdown": "hw_power_brake_slowdown",
    "display_clock_setting": "display_clocks_setting",
}
WORDS = {"enabled": True, "disabled": False, "yes": True, "no": False, "active": True, "not active": False}
UNITS = {"W": 1, "C": 1, "MHz": 1, "%": 1, "MiB": 2**20}


class Row(NamedTuple):
    """One reading: what the doctor says, what nvidia-smi says, and whether they agree."""

    gpu: str
    reading: str
    doctor: Any
    smi: Any
    verdict: str


def value(told: str | None) -> Any:
    """A text of nvidia-smi as a plain value; None = it has none."""
    if told is None or told.strip() in ("N/A", "[N/A]", "Unknown Error", "Requested functionality has been deprecated"):
        return None
    told = told.strip()
    if told.lower() in WORDS:
        return WORDS[told.lower()]
    match = re.fullmatch(r"(-?[\d.]+)(?: (\w+|%))?", told)
    if match is not None and (match[2] is None or match[2] in UNITS) and told.count(".") <= 1:
        return float(match[1]) * (UNITS[match[2]] if match[2] else 1)
    if re.fullmatch(r"P\d+|\d+x", told):
        return float(told.strip("Px"))
    return told


def same(reading: str, ours: Any, theirs: Any) -> str:
    """equal, near, different, or not supported."""
    if ours is None and theirs is None:
        return "not supported"
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return "equal" if ours is theirs else "different"
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
        if abs(ours - theirs) < 0.01 * max(1.0, abs(theirs)) and reading not in NEAR:
            return "equal"
        return "equal" if ours == theirs else "near" if abs(ours - theirs) <= NEAR.get(reading, 0.0) else "different"
    return "equal" if str(ours) == (str(int(theirs)) if isinstance(theirs, float) else str(theirs)) else "different"


def compare_card(card: dict[str, Any], tree: ElementTree.Element) -> Iterator[Row]:
    """Rows of one card."""
    gpu = str(card["index"])
    for reading, path in PATHS.items():
        theirs = value(tree.findtext(path))
        yield Row(gpu, reading, card[reading], theirs, same(reading, card[reading], theirs))
    parts = [value(tree.findtext(f"fb_memory_usage/{part}")) for part in ("used", "reserved")]
    used = None if parts[0] is None else parts[0] + (parts[1] or 0)
    yield Row(gpu, "memory_used_bytes", card["memory_used_bytes"], used, same("memory_used_bytes", card["memory_used_bytes"], used))
    node = tree.find("clocks_event_reasons")
    if node is not None:
        theirs = [name for name, tag in REASONS.items() if value(node.findtext(f"clocks_event_reason_{tag}")) is True]
        ours = None if card["reasons"] is None else [name for name in card["reasons"] if name in REASONS]
        yield Row(gpu, "reasons", ours, theirs, "equal" if ours == theirs else "different")
    rows = tree.find("remapped_rows")
    theirs = None
    if rows is not None:
        found = [value(rows.findtext(f"remapped_row_{part}")) for part in ("corr", "unc", "pending", "failure")]
        theirs = None if None in found else [int(found[0]), int(found[1]), found[2], found[3]]
    verdict = "not supported" if card["remapped_rows"] is None and theirs is None else "different"
    yield Row(gpu, "remapped_rows", card["remapped_rows"], theirs, "equal" if card["remapped_rows"] == theirs else verdict)


def topology(told: str) -> list[list[str]]:
    """GPU-GPU cells of ``nvidia-smi topo -m``."""
    plain = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", told).splitlines() if line.strip()]
    columns = [cell.strip() for cell in plain[0].split("\t")]
    where = [index for index, cell in enumerate(columns) if re.fullmatch(r"GPU\d+", cell)]
    rows = [[cell.strip() for cell in line.split("\t")] for line in plain[1:] if re.match(r"GPU\d+\t", line)]
    return [[row[index] for index in where] for row in rows]


def speeds(told: str) -> dict[int, list[float | None]]:
    """GB/s of each link of ``nvidia-smi nvlink -s`` by GPU; None = inactive."""
    found: dict[int, list[float | None]] = {}
    gpu = -1
    for line in told.splitlines():
        if (head := re.match(r"GPU (\d+):", line)) is not None:
            gpu = int(head[1])
        elif (link := re.search(r"Link \d+: (?:([\d.]+) GB/s|<inactive>)", line)) is not None:
            found.setdefault(gpu, []).append(float(link[1]) if link[1] else None)
    return found


def smi(folder: Path | None, name: str, *arguments: str) -> str:
    """What nvidia-smi prints; kept in ``folder``."""
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=120)
    if folder is not None:
        (folder / name).write_text(done.stdout + done.stderr)
    return done.stdout


def look() -> dict[str, Any]:
    """What the doctor sees, without a rig file."""
    return doctor.Subject(doctor._open(None), None, run_command, simulated=False).look()


def rows_of(folder: Path | None) -> Iterator[Row]:
    """Everything, card by card, then what joins the cards."""
    before = smi(folder, "before.xml", "-q", "-x")
    seen = look()
    log = ElementTree.fromstring(smi(folder, "nvidia-smi.xml", "-q", "-x"))
    if folder is not None:
        (folder / "doctor.json").write_text(json.dumps(seen, indent=1))
    yield Row(
        "-", "driver", seen["driver"], log.findtext("driver_version"), same("", seen["driver"], log.findtext("driver_version"))
    )
    for card, tree in zip(seen["gpus"], log.findall("gpu"), strict=True):
        yield from compare_card(card, tree)
    matrix = topology(smi(folder, "topo.txt", "topo", "-m"))
    for ours, theirs, card in zip(seen["nvlink"]["matrix"], matrix, seen["gpus"], strict=True):
        yield Row(str(card["index"]), "topo -m", " ".join(ours), " ".join(theirs), "equal" if ours == theirs else "different")
    links = speeds(smi(folder, "nvlink.txt", "nvlink", "-s"))
    for card in seen["gpus"]:
        mine = [each for each in seen["nvlink"]["links"] if each["gpu"] == card["index"]]
        ours_gb = [each["mbyte_s"] / 1000 if each["active"] and each["mbyte_s"] else None for each in mine]
        theirs_gb = links.get(card["index"], [])
        near = len(ours_gb) == len(theirs_gb) and all(
            (a is None) == (b is None) and (a is None or abs(a - b) < 0.01) for a, b in zip(ours_gb, theirs_gb, strict=True)
        )
        verdict = "not supported" if not ours_gb and not theirs_gb else "equal" if near else "different"
        yield Row(str(card["index"]), "nvlink -s", _brief(ours_gb), _brief(theirs_gb), verdict)
    yield from _unchanged(before, smi(folder, "after.xml", "-q", "-x"))


def _brief(found: list[float | None]) -> str:
    return f"{len(found)} links, {sum(each is not None for each in found)} up, {sorted({each for each in found if each})} GB/s"


def _unchanged(before: str, after: str) -> Iterator[Row]:
    """Settings of every card before and after."""
    kept = (
        "persistence_mode",
        "compute_mode",
        "gpu_power_readings/requested_power_limit",
        "ecc_mode/current_ecc",
        "mig_mode/current_mig",
    )
    trees = [ElementTree.fromstring(each).findall("gpu") for each in (before, after)]
    for index, (was, now) in enumerate(zip(*trees, strict=True)):
        old, new = ([each.findtext(path) for path in kept] for each in (was, now))
        yield Row(str(index), "settings before/after", old, new, "equal" if old == new else "different")


def main() -> int:
    """Print the table; exit code 1 where something differs."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    rows = list(rows_of(folder))
    for row in rows:
        print(f"GPU {row.gpu:2} {row.reading:26} {str(row.doctor)[:44]:44} {str(row.smi)[:44]:44} {row.verdict}")
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("equal", "near", "not supported", "different")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["different"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
