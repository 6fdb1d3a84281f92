"""Are the cards what was promised? Identity, power limit, PCIe: pure judgements on plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.run import Limit, Measurement, Verdict
from pytest_sglang.record.values import Finding, Value
from pytest_sglang.rig.model import GpuPromise

TOLERANCE_W = 1.0
"""A driver rounds a limit to its own steps; a watt is no lost limit."""


class Unreadable(NamedTuple):
    """Why a reading is missing; ``permission``: a right would give it."""

    reason: str
    permission: bool = False


class FoundGpu(Value, frozen=True, kw_only=True):
    """One card as found. Watts; None = not readable, with its reason in ``unreadable`` under the field's name."""

    index: int
    uuid: str
    pci: str = ""
    name: str | None = None
    persistence: bool | None = None
    requested_w: float | None = None
    enforced_w: float | None = None
    default_w: float | None = None
    min_w: float | None = None
    max_w: float | None = None
    pcie_gen: int | None = None
    pcie_width: int | None = None
    pcie_max_gen: int | None = None
    pcie_max_width: int | None = None
    unreadable: dict[str, Unreadable] = {}

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"GPU {self.index}"


def normal_pci(text: str) -> str:
    """A PCI bus id in one spelling: ``00000000:41:00.0``, ``41:00.0``, ``0000:41:00`` all give ``0000:41:00.0``."""
    match = re.fullmatch(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?", text.strip().lower())
    if match is None:
        return text.strip().lower()
    domain = (match[1] or "0").lstrip("0").rjust(4, "0")
    return f"{domain}:{match[2]}:{match[3]}.{match[4] or '0'}"


def same_gpu(promise: GpuPromise, gpu: FoundGpu) -> bool:
    """``gpu`` is the one that the promise names, by UUID, bus id or index; a UUID may be shortened to its beginning."""
    if promise.uuid is not None:
        wanted = promise.uuid.lower()
        return gpu.uuid.lower() == wanted or (len(wanted) >= 8 and gpu.uuid.lower().startswith(wanted))
    if promise.pci is not None:
        return gpu.pci == normal_pci(promise.pci)
    return promise.index == gpu.index


def match(promised: Sequence[GpuPromise], found: Sequence[FoundGpu]) -> tuple[FoundGpu | None, ...]:
    """The found card of each promised one, by position in ``[[gpus]]``; None = it is not there."""
    return tuple(next((gpu for gpu in found if same_gpu(promise, gpu)), None) for promise in promised)


def identity(
    promised: Sequence[GpuPromise],
    found: Sequence[FoundGpu],
    *,
    unopened: Mapping[int, str] | None = None,
    unavailable: frozenset[str] = frozenset(),
) -> Judgement:
    """Every promised GPU is present and is itself: name, and the PCIe generation and width that it can reach.

    ``unopened``: cards that the driver counts but cannot open, by index, with the reason.
    """
    findings: list[Finding] = []
    first: dict[str, str] = {}
    for position, (promise, gpu) in enumerate(zip(promised, match(promised, found), strict=True)):
        if gpu is not None and first.setdefault(gpu.uuid, promise.label) != promise.label:
            detail = f"{first[gpu.uuid]} and {promise.label} of the rig file are this one card"
            findings.append(
                Finding("gpu-twice", "fail", gpu.label, detail, "name each card once in [[gpus]], best by its whole uuid")
            )
            continue
        if gpu is None:
            findings.append(_absent(promise, found, unopened or {}))
            continue
        findings.extend(_named(promise, gpu, found, unavailable))
        findings.extend(_reach(promise, gpu, unavailable))
        if promise.index is None and gpu.index != position:
            moved = f"{promise.label} is NVML's GPU {gpu.index}, entry {position} of the rig file"
            findings.append(Finding("gpu-order", "info", gpu.label, moved, "nothing to do: it is found by its UUID or bus id"))
    extra = [gpu.label for gpu in found if not any(same_gpu(promise, gpu) for promise in promised)]
    if extra:
        findings.append(Finding("gpu-extra", "info", ", ".join(extra), "present, not promised in the rig file"))
    present = len({gpu.uuid for gpu in match(promised, found) if gpu is not None})
    return conclude(
        findings,
        good=f"{present} of {len(promised)} promised GPUs are present and themselves",
        quantity="gpus",
        measured={"gpus": Measurement(present, "count")},
        limit=Limit("==", len(promised), "count"),
    )


def _absent(promise: GpuPromise, found: Sequence[FoundGpu], unopened: Mapping[int, str]) -> Finding:
    there = ", ".join(gpu.label for gpu in found) or "none"
    detail = f"promised, not found (the driver shows {there})"
    remedy = "look for Xid 79 in the kernel log, reseat the card, check its power cables; if it was taken out, correct the rig file"
    if unopened:
        reasons = "; ".join(f"GPU {index}: {reason}" for index, reason in unopened.items())
        detail += f"; the driver counts cards that do not answer: {reasons}"
    return Finding("gpu-missing", "fail", promise.label, detail, remedy)


def _named(promise: GpuPromise, gpu: FoundGpu, found: Sequence[FoundGpu], unavailable: frozenset[str]) -> list[Finding]:
    if promise.name is None or "name" in unavailable:
        return []
    if gpu.name is None:
        return [unknown("name", gpu.label, "name", gpu.unreadable.get("name"))]
    if gpu.name == promise.name:
        return []
    elsewhere = [each.label for each in found if each.name == promise.name]
    remedy = "correct the rig file, or put the promised card back"
    if promise.index is not None and elsewhere:
        remedy = f"a {promise.name} is {', '.join(elsewhere)}: indices move at reboots, name GPUs by uuid in the rig file"
    return [Finding("gpu-name", "fail", gpu.label, f"is a {gpu.name}, promised {promise.name}", remedy)]


def _reach(promise: GpuPromise, gpu: FoundGpu, unavailable: frozenset[str]) -> list[Finding]:
    """What the link can do: its present width (which does not drop when idle) and its highest generation (the present one does)."""
    if "pcie" in unavailable:
        return []
    findings = []
    asked = (
        ("generation", promise.pcie_gen, gpu.pcie_max_gen, "pcie_max_gen", "gen "),
        ("width", promise.pcie_width, gpu.pcie_width, "pcie_width", "x"),
    )
    for what, wanted, value, field, sign in asked:
        if wanted is None:
            continue
        if value is None:
            findings.append(unknown("pcie", gpu.label, f"PCIe {what}", gpu.unreadable.get(field)))
        elif value < wanted:
            detail = f"PCIe {sign}{value}, promised {sign}{wanted}"
            findings.append(Finding("pcie", "fail", gpu.label, detail, "reseat the card; check riser, slot and BIOS setting"))
    return findings


def pcie_under_load(
    promised: Sequence[GpuPromise], loaded: Sequence[FoundGpu | None], *, unavailable: frozenset[str] = frozenset()
) -> Judgement:
    """PCIe generation and width as read *while the cards worked*: idle ones drop to gen 1. ``loaded`` by position, None = idle."""
    findings: list[Finding] = []
    seen: list[FoundGpu] = []
    for promise, gpu in zip(promised, loaded, strict=True):
        if gpu is None or "pcie" in unavailable:
            continue
        seen.append(gpu)
        for wanted, value, field, sign in (
            (promise.pcie_gen, gpu.pcie_gen, "pcie_gen", "gen "),
            (promise.pcie_width, gpu.pcie_width, "pcie_width", "x"),
        ):
            if wanted is None:
                continue
            if value is None:
                findings.append(unknown("pcie", gpu.label, "PCIe link", gpu.unreadable.get(field)))
            elif value < wanted:
                detail = f"PCIe {sign}{value} under load, promised {sign}{wanted}"
                findings.append(Finding("pcie", "fail", gpu.label, detail, "check riser, slot, BIOS setting (link speed) and ASPM"))
    gens = [gpu.pcie_gen for gpu in seen if gpu.pcie_gen is not None]
    widths = [gpu.pcie_width for gpu in seen if gpu.pcie_width is not None]
    measured = {}
    if gens:
        measured["pcie_gen"] = Measurement(min(gens), "")
    if widths:
        measured["pcie_width"] = Measurement(min(widths), "")
    if not seen and "pcie" not in unavailable:
        findings.append(unknown("pcie", "PCIe", "link under load", Unreadable("no promised card worked in the measurement")))
    good = "PCIe links under load are as promised"
    wanted_gens = [promise.pcie_gen for promise, gpu in zip(promised, loaded, strict=True) if gpu and promise.pcie_gen is not None]
    limit = Limit(">=", min(wanted_gens), "") if wanted_gens and gens else None
    return conclude(findings, good=good, quantity="pcie_gen" if gens else None, measured=measured, limit=limit)


# --- power --------------------------------------------------------------------------------------------------------------------


def power_range(watts: float, gpus: Sequence[FoundGpu]) -> list[str]:
    """Why ``watts`` cannot be set, one line a card that names its range; empty = every card takes it, as far as it tells."""
    return [
        f"{gpu.label} ({gpu.name or gpu.uuid}) takes {gpu.min_w:g}-{gpu.max_w:g} W, not {watts:g} W"
        for gpu in gpus
        if gpu.min_w is not None and gpu.max_w is not None and not gpu.min_w <= watts <= gpu.max_w
    ]


def power_total(watts: float, gpus: Sequence[FoundGpu], all_found: Sequence[FoundGpu], max_total_w: float | None) -> str | None:
    """Why ``watts`` on every one of ``gpus`` is more than the rig's power supply may be asked for; None = it is not.

    Cards that are not set count with the limit that they have.
    """
    if max_total_w is None:
        return None
    ours = {gpu.uuid for gpu in gpus}
    others = [gpu.enforced_w or gpu.max_w or 0.0 for gpu in all_found if gpu.uuid not in ours]
    total = watts * len(gpus) + sum(others)
    if total <= max_total_w + TOLERANCE_W:
        return None
    most = max(0.0, (max_total_w - sum(others)) / max(len(gpus), 1))
    rest = f" and {sum(others):g} W of the other cards" if others else ""
    limit = f"above the rig's max_total_w of {max_total_w:g} W (at most {most:.0f} W a card)"
    return f"{len(gpus)} x {watts:g} W{rest} is {total:g} W, {limit}"


def power_limit(
    promised: Sequence[GpuPromise], found: Sequence[FoundGpu], watts: float, *, unavailable: frozenset[str] = frozenset()
) -> Judgement:
    """Every promised GPU: requested = enforced = ``watts`` (1 W), inside the card's range; persistence mode on.

    Persistence mode that is off fails where the rig file promises it and is a warning where it says nothing; ``persistence = false``
    accepts it.
    """
    findings: list[Finding] = []
    worst: float | None = None
    for promise, gpu in zip(promised, match(promised, found), strict=True):
        if gpu is None:
            findings.append(unknown("gpu-missing", promise.label, "power limit", Unreadable("the card is not there")))
            continue
        if "power_limit" not in unavailable:
            findings.extend(_limit(gpu, watts))
        if promise.persistence is not False and "persistence" not in unavailable:
            findings.extend(_persistence(gpu, watts, promised=promise.persistence is True))
        if gpu.enforced_w is not None and (worst is None or abs(gpu.enforced_w - watts) > abs(worst - watts)):
            worst = gpu.enforced_w
    measured = {} if worst is None else {"enforced_power_limit_w": Measurement(worst, "W")}
    return conclude(
        findings,
        good="power limits: waived in the rig file"
        if "power_limit" in unavailable
        else f"{len(promised)} GPUs enforce {watts:g} W",
        quantity="enforced_power_limit_w" if measured else None,
        measured=measured,
        limit=Limit("==", watts, "W"),
    )


def _limit(gpu: FoundGpu, watts: float) -> list[Finding]:
    if gpu.enforced_w is None or gpu.requested_w is None:
        field = "enforced_w" if gpu.enforced_w is None else "requested_w"
        return [unknown("power-limit", gpu.label, "power limit", gpu.unreadable.get(field))]
    impossible = power_range(watts, [gpu])
    if abs(gpu.enforced_w - watts) <= TOLERANCE_W and abs(gpu.requested_w - watts) <= TOLERANCE_W:
        return []
    detail = f"enforces {gpu.enforced_w:g} W, asked {watts:g} W"
    again = f"set it again at boot (nvidia-smi -i {gpu.index} -pl {watts:g}), and keep persistence mode on"
    if impossible:
        return [Finding("power-limit", "fail", gpu.label, f"{detail}; {impossible[0]}", "ask for a limit inside the card's range")]
    if abs(gpu.requested_w - watts) <= TOLERANCE_W:
        detail += f"; requested {gpu.requested_w:g} W, but the driver enforces another limit"
        clamped = "the board or the driver clamps it: nvidia-smi -q -d POWER names the limits"
        return [Finding("power-limit", "fail", gpu.label, detail, clamped)]
    if gpu.default_w is not None and abs(gpu.requested_w - gpu.default_w) <= TOLERANCE_W:
        lost = f"{detail}; the limit fell back to the card's default (a reboot, a driver unload, a reset)"
        return [Finding("power-limit", "fail", gpu.label, lost, again)]
    detail += f"; requested is {gpu.requested_w:g} W: somebody set another limit"
    remedy = f"nvidia-smi -i {gpu.index} -pl {watts:g}, or run with --sglang-set-power"
    return [Finding("power-limit", "fail", gpu.label, detail, remedy)]


def _persistence(gpu: FoundGpu, watts: float, *, promised: bool) -> list[Finding]:
    """Off: broken where it is promised, a warning where the rig file says nothing of it."""
    if gpu.persistence is None:
        return [unknown("persistence", gpu.label, "persistence mode", gpu.unreadable.get("persistence"))] if promised else []
    if gpu.persistence:
        return []
    detail = f"persistence mode is off: the limit of {watts:g} W is lost when the driver unloads"
    remedy = f"nvidia-smi -i {gpu.index} -pm 1, or enable nvidia-persistenced.service"
    return [Finding("persistence", "fail" if promised else "warn", gpu.label, detail, remedy)]


# --- shared by every judgement of hardware --------------------------------------------------------------------------------------

GRANT = "run as root, or give this user access to /dev/nvidia* (group video or render)"


def unknown(kind: str, subject: str, what: str, why: Unreadable | None, grant: str = GRANT) -> Finding:
    """A promised reading that could not be taken: it makes its judgement inconclusive, never pass."""
    reason = why.reason if why is not None else "no reason given"
    remedy = grant if why is not None and why.permission else f'waive it in the rig file: unavailable = ["{kind}"]'
    return Finding(f"{kind}-unreadable", "warn", subject, f"{what} not readable: {reason}", remedy)


def conclude(
    findings: Sequence[Finding],
    *,
    good: str,
    quantity: str | None = None,
    measured: Mapping[str, Measurement] | None = None,
    limit: Limit | None = None,
) -> Judgement:
    """fail where a finding fails, else inconclusive where one is unreadable, else pass."""
    failed = [each for each in findings if each.severity == "fail"]
    unread = [each for each in findings if each.kind.endswith("-unreadable")]
    speaking = failed or unread
    verdict: Verdict = "fail" if failed else "inconclusive" if unread else "pass"
    message = "; ".join(f"{each.subject} {each.detail}" for each in speaking) or good
    cause = f"{speaking[0].subject} {speaking[0].detail}: {speaking[0].remedy}" if speaking else None
    return Judgement(
        verdict=verdict,
        message=message,
        quantity=quantity,
        measured=dict(measured or {}),
        limit=limit,
        cause=cause,
        inconclusive_because=message if verdict == "inconclusive" else None,
        findings=tuple(findings),
    )
