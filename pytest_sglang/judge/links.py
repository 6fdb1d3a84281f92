"""Do the bridges carry, and which cards are joined best? Pure judgements on plain values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pytest_sglang.judge.hardware import FoundGpu, Unreadable, conclude, match, unknown
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.record.values import Finding, Value
from pytest_sglang.rig.model import GpuPromise, NvlinkPromise

Pair = tuple[int, int]

UNPROMISED = "link count not promised: any link up is enough"
"""Said where the rig file names pairs without their number of links."""
FARTHEST = 60
"""Taken for two cards whose common PCIe ancestor is not known: behind every known level."""


class FoundLinks(Value, frozen=True, kw_only=True):
    """NVLink as found. ``pairs``: active links between two GPUs, by NVML index (smaller first); a pair without any is absent.

    ``unreadable``: cards whose links cannot be read at all, by index. ``nameless``: active links of a card whose other end the driver
    does not tell. ``p2p``: NVLink peer-to-peer status, "OK" where programs can
    use the links. ``levels``: nearest common PCIe ancestor, NVML's number, the smaller the nearer.
    """

    pairs: dict[Pair, int] = {}
    unreadable: dict[int, Unreadable] = {}
    nameless: dict[int, int] = {}
    p2p: dict[Pair, str] = {}
    levels: dict[Pair, int] = {}

    def between(self, one: int, other: int) -> int:
        """Active links between two GPUs."""
        return self.pairs.get((min(one, other), max(one, other)), 0)

    def partners(self, index: int) -> tuple[int, ...]:
        """GPUs to which this one has an active link."""
        return tuple(sorted({*(j for i, j in self.pairs if i == index), *(i for i, j in self.pairs if j == index)}))


def nvlink(
    promise: NvlinkPromise,
    promised: Sequence[GpuPromise],
    found: Sequence[FoundGpu],
    links: FoundLinks,
    *,
    unavailable: frozenset[str] = frozenset(),
) -> Judgement:
    """Every promised pair is up with all its links: a dead, a half-dead and a misplaced bridge fail, each with its cause."""
    cards = match(promised, found)
    findings: list[Finding] = []
    counts: list[int] = []
    if "nvlink" not in unavailable:
        for pair in promise.pairs:
            one, other = (cards[position] if position < len(cards) else None for position in pair)
            if one is None or other is None:
                gone = " and ".join(
                    _label(promised, position) for position, card in zip(pair, (one, other), strict=True) if card is None
                )
                subject = f"pair {pair[0]}-{pair[1]}"
                findings.append(Finding("nvlink", "fail", subject, f"{gone} is not there", "see the check of the GPUs' identity"))
                counts.append(0)
                continue
            finding, count = _pair(one, other, promise.links, links)
            if finding is not None:
                findings.append(finding)
            if count is not None:
                counts.append(count)
    measured = {"nvlink_links": Measurement(min(counts), "count")} if counts else {}
    wanted = promise.links if promise.links is not None else 1
    seen = f"; {UNPROMISED}" + (f"; {min(counts)} seen" if counts else "")
    return conclude(
        findings,
        good=f"{len(promise.pairs)} NVLink pairs are up"
        + (f" with {promise.links} links each" if promise.links is not None else seen),
        quantity="nvlink_links" if measured else None,
        measured=measured,
        limit=Limit(">=", wanted, "count"),
    )


def _label(promised: Sequence[GpuPromise], position: int) -> str:
    return promised[position].label if position < len(promised) else f"entry {position} of [[gpus]]"


def _pair(one: FoundGpu, other: FoundGpu, wanted: int | None, links: FoundLinks) -> tuple[Finding | None, int | None]:
    subject = f"GPU {one.index}-{other.index}"
    for gpu in (one, other):
        if gpu.index in links.unreadable:
            return unknown("nvlink", subject, f"NVLink of {gpu.label}", links.unreadable[gpu.index]), None
    active = links.between(one.index, other.index)
    if active >= (wanted if wanted is not None else 1):
        return _unusable(subject, links.p2p.get((min(one.index, other.index), max(one.index, other.index)))), active
    hidden = min(links.nameless.get(gpu.index, 0) for gpu in (one, other))
    if hidden and active + hidden >= (wanted if wanted is not None else 1):
        why = Unreadable(f"{hidden} active links whose other end the driver does not tell")
        return unknown("nvlink", subject, "NVLink partner", why), None
    if active > 0:
        detail = f"only {active} of {wanted} NVLink links are up"
        return Finding(
            "nvlink-partial", "fail", subject, detail, "the bridge sits half: power off, reseat it, clean its contacts"
        ), active
    strangers = [
        (gpu, [each for each in links.partners(gpu.index) if each not in (one.index, other.index)]) for gpu in (one, other)
    ]
    wrong = [f"{gpu.label} is linked to GPU {', '.join(map(str, them))}" for gpu, them in strangers if them]
    if wrong:
        detail = f"no NVLink between them: {'; '.join(wrong)}"
        remedy = (
            "the bridge joins other cards than promised, or the indices have moved: name GPUs by uuid, or correct [nvlink] pairs"
        )
        return Finding("nvlink-partner", "fail", subject, detail, remedy), 0
    detail = "no NVLink link is up"
    return Finding(
        "nvlink-missing", "fail", subject, detail, "bridge missing, not seated or dead: reseat it with the rig off, then reboot"
    ), 0


def _unusable(subject: str, status: str | None) -> Finding | None:
    """Links are up, but no program may use them: SGLang asks for this very status. None = usable, or not readable."""
    if status in (None, "OK", "U"):
        return None
    detail = f"the links are up, but NVLink peer-to-peer is off (status {status} of nvidia-smi topo -p2p n)"
    remedy = (
        "look at nvidia-smi topo -p2p n; IOMMU and virtualisation settings, the fabric manager, or a registry key of the driver"
    )
    return Finding("nvlink-p2p", "fail", subject, detail, remedy)


def best_gpus(count: int, links: FoundLinks, gpus: Sequence[int]) -> tuple[int, ...]:
    """The ``count`` GPUs with the most NVLink links among themselves; of equals the nearest over PCIe, then the lowest indices."""

    def worth(chosen: tuple[int, ...]) -> tuple[int, int, list[int]]:
        pairs = list(combinations(chosen, 2))
        far = sum(links.levels.get(pair, FARTHEST) for pair in pairs)
        return sum(links.between(a, b) for a, b in pairs), -far, [-index for index in chosen]

    return max(combinations(sorted(gpus), min(count, len(gpus))), key=worth)


def custom_all_reduce(serving: Sequence[int], links: FoundLinks, tp: int | None = None) -> bool | None:
    """Whether SGLang's custom all-reduce must be on (True), is off by design (False), or cannot be told from the links (None).

    More than two GPUs need NVLink between every two of them, so TP=4 over two bridged pairs is off by design; sizes other than
    2, 4, 6, 8 never use it (sglang/srt/distributed/device_communicators/custom_all_reduce.py).
    """
    size = tp if tp is not None else len(serving)
    if size < 2:
        return None
    if size not in (2, 4, 6, 8):
        return False
    if size != len(serving):
        return None
    linked = all(links.between(a, b) > 0 for a, b in combinations(serving, 2))
    if linked:
        return True
    return False if size > 2 else None
