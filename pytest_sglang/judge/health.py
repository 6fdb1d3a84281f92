"""Is a card's memory sound, did its links send anything twice, what did the kernel say? Pure judgements on plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_sglang.judge.hardware import Unreadable, conclude, unknown
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.record.values import Finding, Value

CRC_PER_S = 100.0
"""Checksum errors of a link a second from which on DCGM calls it broken (dcgm_gpu_hardware_limits.h)."""
FEW = 3
"""Fewer repeats than these are told and fail nothing, however short the look."""
MANY_PER_MINUTE = 8.0
"""More repeated packets a minute than this fail a link; fewer are shown. DCGM's health check draws its line for PCIe there."""

GRANT_LOG = "sudo usermod -aG systemd-journal $USER, then log in again"
"""What lets a user read the kernel's messages in the journal."""


class FoundMemory(Value, frozen=True, kw_only=True):
    """A card's memory as found. None = not readable, with its reason in ``unreadable``; ``unsupported``: names that the card has not.

    ``uncorrected``: errors since the driver was loaded. ``rows``: remapped for corrected and uncorrected errors, pending, failed.
    """

    index: int
    uuid: str
    ecc: bool | None = None
    uncorrected: int | None = None
    rows: tuple[int, int, bool, bool] | None = None
    unreadable: dict[str, Unreadable] = {}
    unsupported: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"GPU {self.index}"


def memory(
    before: Sequence[FoundMemory],
    now: Sequence[FoundMemory],
    lost: Mapping[str, str],
    *,
    unavailable: frozenset[str] = frozenset(),
) -> Judgement:
    """Every promised card still answers, counted no uncorrected memory error since ``before``, and has no row waiting for a remap.

    ``lost``: cards that do not answer any more, by label, with the reason. A card without ECC has nothing to count: that is told.
    """
    findings = [Finding("gpu-lost", "fail", label, why, _LOST_REMEDY) for label, why in lost.items()]
    was = {each.uuid: each for each in before}
    without: list[str] = []
    if "ecc" not in unavailable:
        for each in now:
            findings.extend(_memory(was.get(each.uuid), each))
            if {"ecc", "rows"} <= each.unsupported:
                without.append(each.label)
    if without:
        findings.append(Finding("ecc", "info", ", ".join(without), "memory errors and remapped rows: not supported by these cards"))
    counted = len(now) - len(without) if "ecc" not in unavailable else 0
    said = f"; the memory of {counted} is sound" if counted else "; memory errors are not supported by them"
    waived = "; memory errors: waived in the rig file" if "ecc" in unavailable else said
    return conclude(
        findings,
        good=f"{len(now)} promised GPUs answer{waived}",
        quantity="gpus",
        measured={"gpus": Measurement(len(now), "count")},
        limit=Limit("==", len(now) + len(lost), "count"),
    )


_LOST_REMEDY = "look for Xid 79 in the kernel log: power supply and its cables, riser, slot, heat; only a reboot brings it back"


def _memory(was: FoundMemory | None, now: FoundMemory) -> list[Finding]:
    findings = []
    if now.rows is not None:
        _, uncorrectable, pending, failed = now.rows
        if failed:
            findings.append(Finding("rows", "fail", now.label, "remapping a memory row failed", "the card is to be replaced"))
        if pending:
            detail = f"a memory row waits for its remap ({uncorrectable} remapped after uncorrected errors)"
            findings.append(Finding("rows", "fail", now.label, detail, "reset the card (nvidia-smi --gpu-reset) or reboot"))
    elif "rows" not in now.unsupported:
        findings.append(unknown("ecc", now.label, "remapped rows", now.unreadable.get("rows")))
    if now.uncorrected is not None and now.ecc and was is not None and _lost_count(was, now):
        findings.append(unknown("ecc", now.label, "memory errors since the run began", Unreadable(_lost_count(was, now))))
    elif now.uncorrected is not None and now.ecc:
        begin = was.uncorrected if was is not None and was.uncorrected is not None else now.uncorrected
        grown = now.uncorrected - begin
        if grown > 0:
            detail = f"{grown} uncorrected memory errors since the run began"
            findings.append(
                Finding("ecc", "fail", now.label, detail, "run dcgmi diag or a memory test; replace the card if they go on")
            )
        elif now.uncorrected > 0:
            detail = f"{now.uncorrected} uncorrected memory errors since the driver was loaded, none since the run began"
            findings.append(Finding("ecc", "warn", now.label, detail, "watch them: nvidia-smi -q -d ECC"))
    elif now.ecc or (now.ecc is None and "ecc" not in now.unsupported):
        field = "uncorrected" if now.ecc else "ecc"
        findings.append(unknown("ecc", now.label, "memory errors", now.unreadable.get(field)))
    return findings


def _lost_count(was: FoundMemory, now: FoundMemory) -> str:
    """Why two counts of a card cannot be compared; "" = they can."""
    if was.uncorrected is None and "uncorrected" not in was.unsupported:
        return "it could not be read when the run began"
    if was.uncorrected is not None and now.uncorrected is not None and now.uncorrected < was.uncorrected:
        return "the count went backwards (a driver reload or a reset of the card)"
    return ""


def repeats(
    before: Mapping[str, int], after: Mapping[str, int], seconds: float, *, unavailable: frozenset[str] = frozenset()
) -> list[Finding]:
    """What PCIe and NVLink had to send again over ``seconds`` of load, from counters by label (``"GPU 0 link 2 replay"``).

    Above MANY_PER_MINUTE a link fails; a recovery (the link was trained anew) fails at once; fewer repeats are a warning. Checksum
    errors (crc flit, crc data) are mended on the way and grow on healthy links too (seen: one in some seconds a link on four idle H200
    over NVSwitch): they fail from CRC_PER_S on, DCGM's own limit ("only matter at rates of 100+ per second"), and are told in a line below it.
    """
    findings = []
    mended: dict[str, int] = {}
    for label, count in after.items():
        grown = count - before.get(label, count)
        pcie = label.endswith("PCIe replays")
        if grown <= 0 or waived(pcie, unavailable):
            continue
        checksum = label.endswith(("crc flit", "crc data"))
        if checksum and grown / max(seconds, 1.0) < CRC_PER_S:
            mended[label] = grown
            continue
        rate = grown / max(seconds, 1.0) * 60.0
        # one repeat in a look of a second is no rate
        bad = checksum or (rate > MANY_PER_MINUTE and grown >= FEW) or label.endswith("recovery")
        subject, what = _split(label)
        remedy = (
            "reseat the card; check riser, slot and cable" if pcie else "reseat the bridge with the rig off, clean its contacts"
        )
        named = what if pcie else f"NVLink errors ({what})"
        detail = f"{grown} {named} in {seconds:.0f} s of load ({rate:.0f} a minute)"
        kind = "pcie-replays" if pcie else "nvlink-errors"
        findings.append(Finding(kind, "fail" if bad else "warn", subject, detail, remedy))
    if mended:
        findings.append(Finding("nvlink-checksums", "info", "NVLink", checksums(mended, f"in {seconds:.0f} s")))
    return findings


def waived(pcie: bool, unavailable: frozenset[str]) -> bool:
    """The owner has given up counters of PCIe (``pcie_replays``, or ``pcie`` as a whole) or of NVLink (``nvlink_errors``)."""
    return bool(unavailable & ({"pcie", "pcie_replays"} if pcie else {"nvlink_errors", "nvlink"}))


def went_down(before: frozenset[str], after: frozenset[str]) -> list[Finding]:
    """Links (``"GPU 0 link 2"``) that were up before the load and are not behind it: their counters are gone with them."""
    remedy = "reseat the bridge with the rig off, clean its contacts; look for Xid 74 in the kernel log"
    return [
        Finding("nvlink-down", "fail", link, "the link was up before the load and is down after it", remedy)
        for link in sorted(before - after)
    ]


def checksums(counts: Mapping[str, int], when: str) -> str:
    """Mended checksum errors of many links in one line."""
    most = max(counts, key=lambda label: counts[label])
    return f"{sum(counts.values())} mended checksum errors on {len(counts)} counters {when}, most on {most}: {counts[most]}"


def _split(label: str) -> tuple[str, str]:
    """``"GPU 0 link 2 crc flit"`` -> (``"GPU 0 link 2"``, ``"crc flit"``)."""
    for what in ("PCIe replays", "crc flit", "crc data"):
        if label.endswith(what):
            return label.removesuffix(f" {what}"), what
    subject, _, what = label.rpartition(" ")
    return subject, what


def kernel_log(messages: Sequence[Finding] | Unreadable, since: str) -> Judgement:
    """No message of the driver of severity fail in the kernel log since ``since``; unreadable: inconclusive, with the line that grants it."""
    if isinstance(messages, Unreadable):
        grant = f'{GRANT_LOG} (or waive it in the rig file: unavailable = ["xid"])'
        return conclude([unknown("xid", "kernel log", "messages of the driver", messages, grant)], good="")
    bad = sum(each.severity == "fail" for each in messages)
    warned = sum(each.severity == "warn" for each in messages)
    good = f"no Xid and no fault of the driver in the kernel log since {since}"
    if warned:
        good = f"{warned} message(s) of the driver in the kernel log since {since}, none of a hardware fault"
    return conclude(
        messages, good=good, quantity="xids", measured={"xids": Measurement(bad, "count")}, limit=Limit("==", 0, "count")
    )
