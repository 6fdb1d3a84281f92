"""What the host says beside NVML: kernel release, and the driver's messages (Xid) in the kernel log."""

from __future__ import annotations

import os
import re
from datetime import datetime

from pytest_sglang.gpu.power import Run, run_command
from pytest_sglang.gpu.readings import Missing, Reading
from pytest_sglang.judge.hardware import normal_pci
from pytest_sglang.judge.health import GRANT_LOG
from pytest_sglang.record.values import Finding, Severity, Value

GRANT = f'{GRANT_LOG} (or waive it in the rig file: unavailable = ["xid"])'

XID: dict[int, tuple[str, str]] = {
    13: ("warn", "graphics engine exception: usually the program, else memory or heat"),
    31: ("warn", "memory page fault: usually the program"),
    32: ("fail", "invalid push buffer: driver, or corruption on the PCIe bus"),
    43: ("warn", "the program's channel was reset"),
    45: ("warn", "channels were removed, after an earlier error or a killed program"),
    48: ("fail", "uncorrectable memory error (double-bit ECC)"),
    61: ("fail", "internal micro-controller breakpoint: reset the card, update the driver"),
    62: ("fail", "internal micro-controller halt: reset the card, update the driver"),
    63: ("warn", "a memory row is being remapped"),
    64: ("fail", "remapping a memory row failed: the card is to be replaced"),
    74: ("fail", "NVLink error: reseat the bridge"),
    79: ("fail", "the card has fallen off the bus: power supply, riser, slot, heat"),
    92: ("warn", "many corrected memory errors"),
    94: ("fail", "contained memory error"),
    95: ("fail", "uncontained memory error: reset the card"),
    119: ("fail", "the card's system processor does not answer (GSP time-out)"),
    120: ("fail", "the card's system processor failed (GSP error)"),
    154: ("fail", "the driver says that the card needs a recovery action"),
}
"""Meaning of Xid numbers, shortened from NVIDIA's "XID Errors" document; others count as a warning."""

NVRM: tuple[tuple[str, Severity, str], ...] = (
    (r"RmInitAdapter failed", "fail", "the driver cannot start a card: power cables, riser, slot; then the driver's installation"),
    (r"API mismatch", "fail", "library and kernel module have different versions: reboot, or reload the module"),
    (r"fallen off the bus", "fail", "the card has fallen off the bus: power supply, riser, slot, heat"),
    (r"GPU Board Serial Number|loading NVIDIA|Persistence mode is deprecated|Unloading", "info", ""),
)
"""Messages of the driver that are no Xid, and what to do; others are a warning."""

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),?\s*(.*)")
_NVRM = re.compile(r"NVRM: (.*)")
_BUS = re.compile(r"\b([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?:\.[0-7])?\b")
_LOST = re.compile(r"NVRM: GPU (?:at )?(?:PCI:)?([0-9a-fA-F:.]+?):? .*fallen off the bus")


class Xid(Value, frozen=True, kw_only=True):
    """One message of the driver in the kernel log. ``at_s``: seconds since the epoch. ``code`` 0: not an Xid, another NVRM message."""

    at_s: float
    pci: str
    code: int
    text: str


DMESG_SLACK_S = 2.0
"""dmesg reckons its stamps from the time since boot, which drifts: a message of the run must not look older than the run."""


def kernel_release() -> str:
    """Release of the running kernel: ``6.1.0-18-amd64``."""
    return os.uname().release


def xids_since(since_s: float, run: Run = run_command) -> Reading[tuple[Xid, ...]]:
    """Xid messages of the kernel log since ``since_s`` (epoch seconds), from the journal, else dmesg.

    Missing, with the line that grants the right, where neither may be read.
    """
    found = messages_since(since_s, run)
    return found if isinstance(found, Missing) else tuple(each for each in found if each.code)


def messages_since(since_s: float, run: Run = run_command) -> Reading[tuple[Xid, ...]]:
    """Every message of the driver (Xid and other NVRM lines) since ``since_s``; as ``xids_since``."""
    lines, slack_s = _journal(since_s, run), 0.0
    if isinstance(lines, Missing):
        by_dmesg = _dmesg(run)
        if isinstance(by_dmesg, Missing):
            return by_dmesg if by_dmesg.permission else lines
        lines, slack_s = by_dmesg, DMESG_SLACK_S
    return tuple(each for each in (parse_line(line) for line in lines) if each is not None and each.at_s >= since_s - slack_s)


def _journal(since_s: float, run: Run) -> Reading[list[str]]:
    # a user who may not read the kernel's messages gets an empty journal and exit code 0: only a line of this boot proves the right
    code, output = run(["journalctl", "-k", "-b", "-n", "1", "-o", "short-unix", "--no-pager", "-q"])
    if code != 0:
        return Missing(output.splitlines()[0] if output else f"journalctl: exit code {code}")
    if not any(re.match(r"\d+\.\d+ ", line) for line in output.splitlines()):
        return Missing(f"the journal shows no kernel message to this user; {GRANT}", permission=True)
    code, output = run(["journalctl", "-k", "-o", "short-unix", "--since", f"@{int(since_s)}", "--no-pager", "-q"])
    return output.splitlines() if code == 0 else Missing(output or f"journalctl: exit code {code}")


def _dmesg(run: Run) -> Reading[list[str]]:
    code, output = run(["dmesg", "--time-format=iso"])
    if code == 0:
        return output.splitlines()
    denied = "not permitted" in output.lower() or "permission" in output.lower()
    return Missing(f"{output.splitlines()[0] if output else 'dmesg failed'}; {GRANT}", permission=denied)


def parse_line(line: str) -> Xid | None:
    """The driver's message in one kernel log line (``journalctl -o short-unix`` or ``dmesg --time-format=iso``); None = another message."""
    found = _XID.search(line)
    if found is not None:
        return Xid(at_s=_stamp(line), pci=normal_pci(found[1]), code=int(found[2]), text=found[3].strip())
    lost = _LOST.search(line)
    if lost is not None:
        return Xid(at_s=_stamp(line), pci=normal_pci(lost[1]), code=79, text="GPU has fallen off the bus.")
    other = _NVRM.search(line)
    if other is not None:
        bus = _BUS.search(other[1])
        return Xid(at_s=_stamp(line), pci=normal_pci(bus[1]) if bus else "", code=0, text=other[1].strip())
    return None


def _stamp(line: str) -> float:
    first = line.split(" ", 1)[0]
    try:
        return float(first)
    except ValueError:
        try:
            # dmesg writes the decimal comma of ISO 8601
            return datetime.fromisoformat(first.replace(",", ".")).timestamp()
        except ValueError:
            return float("inf")  # a line without a readable time counts as new: better told twice than missed


def findings(xids: tuple[Xid, ...], labels: dict[str, str] | None = None, *, only: bool = False) -> tuple[Finding, ...]:
    """One finding for every Xid number of every card, with its count; ``labels``: names by PCI bus id.

    ``only``: what the kernel says of cards that are not among ``labels`` is a warning at most.
    """
    grouped: dict[tuple[str, int, str], list[Xid]] = {}
    for each in xids:
        grouped.setdefault((each.pci, each.code, "" if each.code else each.text), []).append(each)
    told = []
    for (pci, code, _), all_of_it in grouped.items():
        severity, meaning = _meaning(all_of_it[0])
        if severity == "fail" and only and pci and pci not in (labels or {}):
            severity = "warn"
        # the loss of a card is written twice, as an Xid and in words
        count = len({int(each.at_s) for each in all_of_it}) if code == 79 else len(all_of_it)
        times = "" if count == 1 else f", {count} times"
        subject = (labels or {}).get(pci, pci or "driver")
        head = f"Xid {code}{times}: " if code else "kernel log: "
        told.append(Finding("xid" if code else "nvrm", severity, subject, f"{head}{all_of_it[0].text or meaning}", meaning))
    return tuple(told)


def _meaning(message: Xid) -> tuple[Severity, str]:
    if message.code:
        severity, meaning = XID.get(message.code, ("warn", "see NVIDIA's XID Errors document"))
        return ("fail" if severity == "fail" else "warn"), meaning
    for pattern, severity, meaning in NVRM:
        if re.search(pattern, message.text):
            return severity, meaning
    return "warn", "a message of the driver that is not known here: read the kernel log around it"
