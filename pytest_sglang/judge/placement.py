"""Does the server run where it was meant to, on cards that are joined, with nobody beside it? Pure judgements on plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pytest_sglang.judge.hardware import Unreadable, conclude, unknown
from pytest_sglang.judge.links import FoundLinks, best_gpus, custom_all_reduce
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.record.values import Finding, Value


class Foreign(Value, frozen=True, kw_only=True):
    """A process on a card that is not the server's. ``kind`` graphics: a display server, information and no fault."""

    uuid: str
    index: int
    pid: int
    name: str
    used_bytes: int | None
    kind: Literal["compute", "graphics"]


class AllReduce(Value, frozen=True, kw_only=True):
    """SGLang's custom all-reduce as its log tells of it. ``state`` None: no line about it.

    ``detail``: the reason of the line. ``would_tell``: this version writes a line when it is on. ``by_flag``: switched off by
    ``--disable-custom-all-reduce``.
    """

    state: Literal["on", "off"] | None = None
    detail: str = ""
    would_tell: bool = False
    by_flag: bool = False


def placement(
    serving: Sequence[int] | Unreadable,
    wanted: Sequence[int] | None,
    links: FoundLinks,
    *,
    tp: int | None = None,
    all_gpus: Iterable[int] = (),
    all_reduce: AllReduce | None = None,
    strangers: Iterable[Foreign] = (),
    exclusive: bool = False,
) -> Judgement:
    """The server's GPUs (NVML indices, from its process ids) are the promised ones; each tensor parallel group lies on joined cards.

    ``serving`` Unreadable: inconclusive, for instance where a container hides process ids. ``tp``: tensor parallel size.
    ``all_reduce``: what the log says of custom all-reduce, judged against what the links let expect. ``exclusive``: it is promised
    that nobody else computes on the server's cards.
    """
    if isinstance(serving, Unreadable):
        return conclude([unknown("placement", "server", "the GPUs that it runs on", serving)], good="")
    here = sorted(serving)
    findings: list[Finding] = []
    if wanted is not None and here != sorted(wanted):
        detail = f"runs on GPUs {_list(here)}, promised {_list(wanted)}"
        remedy = f"set {_visible(wanted)}, or --base-gpu-id"
        findings.append(Finding("placement", "fail", "server", detail, remedy))
    everything = sorted({*all_gpus, *here})
    for group in groups(here, tp):
        findings.extend(_group(group, links, everything))
    findings.extend(_all_reduce(here, links, tp, all_reduce or AllReduce()))
    findings.extend(strange(strangers, exclusive=exclusive))
    return conclude(
        findings,
        good=_good(here, links, tp, all_reduce),
        quantity="gpus",
        measured={"gpus": Measurement(_list(here), "")},
        limit=None if wanted is None else Limit("==", _list(wanted), ""),
    )


def groups(serving: Sequence[int], tp: int | None) -> tuple[tuple[int, ...], ...]:
    """Tensor parallel groups in SGLang's order: ranks take the visible GPUs one after the other, group by group.

    One group where the size is not known, or does not divide the number of cards.
    """
    here = sorted(serving)
    if tp is None or tp < 1 or len(here) % tp:
        return (tuple(here),)
    return tuple(tuple(here[begin : begin + tp]) for begin in range(0, len(here), tp))


def expected_all_reduce(serving: Sequence[int], links: FoundLinks, tp: int | None) -> bool | None:
    """Whether custom all-reduce must be on in every tensor parallel group (True), is off by design (False); None = cannot be told."""
    found = {custom_all_reduce(group, links, tp) for group in groups(serving, tp)}
    return found.pop() if len(found) == 1 else None


def _list(gpus: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(gpus)))


def _visible(gpus: Iterable[int]) -> str:
    return f"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={','.join(map(str, sorted(gpus)))}"


def _good(here: Sequence[int], links: FoundLinks, tp: int | None, told: AllReduce | None) -> str:
    expected = expected_all_reduce(here, links, tp)
    good = f"the server runs on GPUs {_list(here)}"
    if expected is None:
        return good
    state = "on" if expected else "off"
    if told is not None and told.state == state:
        return f"{good}; custom all-reduce is {state}, as " + (
            "its links let expect" if expected else "expected without full NVLink"
        )
    return f"{good}; custom all-reduce is expected to be {state}"


def _group(group: Sequence[int], links: FoundLinks, everything: Sequence[int]) -> list[Finding]:
    """Cards of a group whose bridged partners all stay outside, though the group has several cards."""
    if len(group) < 2:
        return []
    told = []
    for index in group:
        partners = links.partners(index)
        if partners and not set(partners) & set(group):
            told.append(f"GPU {index} is bridged to GPU {_list(partners)}, which is not in its group")
    if not told:
        return []
    better = best_gpus(len(group), links, everything)
    detail = f"tensor parallel group on GPUs {_list(group)}: " + "; ".join(told)
    remedy = "no better choice of GPUs here"
    if sorted(better) != sorted(group):
        remedy = f"choose GPUs {_list(better)}: {_visible(better)}"
    return [Finding("placement-pairs", "fail", "server", detail, remedy)]


def _all_reduce(here: Sequence[int], links: FoundLinks, tp: int | None, told: AllReduce) -> list[Finding]:
    expected = expected_all_reduce(here, links, tp)
    subject, kind = "custom all-reduce", "custom-all-reduce"
    if expected and told.by_flag:
        detail = "switched off by --disable-custom-all-reduce, although these cards are joined by NVLink"
        return [Finding(kind, "warn", subject, detail, "leave the flag away")]
    if expected and told.state == "off":
        detail = f"is off ({told.detail}), although every two of GPUs {_list(here)} are joined by NVLink"
        remedy = "CUDA_VISIBLE_DEVICES must hold plain indices; look at nvidia-smi topo -p2p r"
        return [Finding(kind, "fail", subject, detail, remedy)]
    if expected and told.state is None and told.would_tell:
        detail = "should be on, and the log of the newest start does not say that it took part in graph capture"
        return [Finding(kind, "warn", subject, detail, "read the log around 'Capture cuda graph'")]
    if expected is False and told.state == "on":
        detail = f"is on, although GPUs {_list(here)} are not all joined by NVLink: it may hang or give wrong sums"
        return [Finding(kind, "warn", subject, detail, "check answers, not only speed; --disable-custom-all-reduce")]
    if expected is False and told.state == "off":
        return [Finding(kind, "info", subject, f"is off, by design: {told.detail}")]
    return []


def strange(strangers: Iterable[Foreign], *, exclusive: bool) -> list[Finding]:
    """One finding a stranger: a compute process fails where the cards are promised to be the server's alone, else it is a warning.

    A display server is information.
    """
    told = []
    for each in strangers:
        memory = "" if each.used_bytes is None else f", {each.used_bytes / 2**20:.0f} MiB"
        detail = f"process {each.pid} ({each.name}{memory}) is not the server's"
        if each.kind == "graphics":
            told.append(Finding("foreign-process", "info", f"GPU {each.index}", f"{detail}: a display server"))
            continue
        remedy = "end it before measuring, or move it to another card"
        told.append(Finding("foreign-process", "fail" if exclusive else "warn", f"GPU {each.index}", detail, remedy))
    return told
