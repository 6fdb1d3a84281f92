"""Do the bridges carry, and does the server lie on them? Pure judgements on plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from pytest_sglang.judge.hardware import FoundGpu, Unreadable, conclude, match, unknown
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.record.values import Finding, Value
from pytest_sglang.rig.model import GpuPromise, NvlinkPromise

Pair = tuple[int, int]


class FoundLinks(Value, frozen=True, kw_only=True):
    """NVLink as found. ``pairs``: active links between two GPUs, by NVML index (smaller first); a pair without any is absent.

    ``unreadable``: cards whose links cannot be read at all, by index.
    """

    pairs: dict[Pair, int] = {}
    unreadable: dict[int, Unreadable] = {}

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
    return conclude(
        findings,
        good=f"{len(promise.pairs)} NVLink pairs are up"
        + (f" with {promise.links} links each" if promise.links is not None else ""),
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
        return None, active
    if active > 0:
        detail = f"{active} of {wanted} NVLink links are up"
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


def placement(
    serving: Sequence[int] | Unreadable,
    wanted: Sequence[int] | None,
    links: FoundLinks,
    *,
    tp: int | None = None,
    all_gpus: Iterable[int] = (),
    unavailable: frozenset[str] = frozenset(),
) -> Judgement:
    """The server's GPUs (NVML indices, from its process ids) are the promised ones and lie on bridged pairs.

    ``serving`` Unreadable: inconclusive, for instance where a container hides process ids. ``tp``: tensor parallel size.
    """
    if "placement" in unavailable:
        return conclude((), good="the server's GPUs: not checked, waived in the rig file")
    if isinstance(serving, Unreadable):
        return conclude([unknown("placement", "server", "the GPUs that it runs on", serving)], good="")
    here = sorted(serving)
    shown = ", ".join(map(str, here))
    findings: list[Finding] = []
    if wanted is not None and here != sorted(wanted):
        detail = f"runs on GPUs {shown}, promised {', '.join(map(str, sorted(wanted)))}"
        remedy = "set CUDA_VISIBLE_DEVICES with CUDA_DEVICE_ORDER=PCI_BUS_ID, or --base-gpu-id"
        findings.append(Finding("placement", "fail", "server", detail, remedy))
    alone = _alone(here, links)
    if alone:
        better = best_gpus(len(here), links, sorted({*all_gpus, *here}))
        detail = f"runs on GPUs {shown}: " + "; ".join(alone)
        remedy = f"choose GPUs {', '.join(map(str, better))}" if better != tuple(here) else "no better choice of GPUs here"
        findings.append(Finding("placement-pairs", "fail", "server", detail, remedy))
    kind = custom_all_reduce(here, links, tp)
    good = f"the server runs on GPUs {shown}" + (
        "" if kind is None else f"; custom all-reduce is expected to be {'on' if kind else 'off'}"
    )
    return conclude(findings, good=good)


def _alone(serving: Sequence[int], links: FoundLinks) -> list[str]:
    """Serving GPUs whose bridged partners all stay outside, though the server runs on several."""
    if len(serving) < 2:
        return []
    told = []
    for index in serving:
        partners = links.partners(index)
        if partners and not set(partners) & set(serving):
            told.append(f"GPU {index} is bridged to GPU {', '.join(map(str, partners))}, which does not serve")
    return told


def best_gpus(count: int, links: FoundLinks, gpus: Sequence[int]) -> tuple[int, ...]:
    """The ``count`` GPUs with the most NVLink links among themselves; of equals those with the lowest indices."""
    return max(
        combinations(sorted(gpus), min(count, len(gpus))),
        key=lambda chosen: (sum(links.between(a, b) for a, b in combinations(chosen, 2)), [-index for index in chosen]),
    )


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
