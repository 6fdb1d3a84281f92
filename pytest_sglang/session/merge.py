"""Many run folders, one table: node x promise, outliers against the median of the nodes, missing nodes against a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from pytest_sglang.judge import stats
from pytest_sglang.record.run import Verdict
from pytest_sglang.record.values import Finding, Value
from pytest_sglang.session import history, store
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.store import Skipped, Stored

MIN_NODES = 4
"""Fewer nodes have no middle to lie outside of."""
OUTLIER_CHANCE = 0.05
"""Chance of calling some node of a promise an outlier where all are alike (Bonferroni over the nodes)."""
OUTLIER_SHARE = 0.03
"""... and how far off the median it must lie: nodes that agree to a per mille have no outliers that matter."""


class Cell(Value, frozen=True, kw_only=True):
    """One promise on one node. ``deviation``: share off the median of the nodes, None where there is no median."""

    verdict: str
    value: float | None = None
    unit: str = ""
    deviation: float | None = None
    outlier: bool = False


class Fleet(Value, frozen=True, kw_only=True):
    """The table: ``cells[node][promise]``; a promise that a node did not check is missing there."""

    nodes: tuple[str, ...]
    promises: tuple[str, ...]
    cells: dict[str, dict[str, Cell]]
    verdicts: dict[str, str]
    missing: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    """Nodes with a run that the list of nodes does not name."""
    left_out: dict[str, int] = {}
    """Checks that a node's run left out; nodes that left nothing out are not in it."""
    skipped: tuple[Skipped, ...] = ()
    findings: tuple[Finding, ...] = ()
    simulated: bool = False
    folders: dict[str, str] = {}

    @property
    def verdict(self) -> Verdict:
        """fail beats inconclusive beats pass; a missing node, a folder that cannot be read, and no node at all are inconclusive."""
        verdicts = set(self.verdicts.values())
        if "fail" in verdicts:
            return "fail"
        incomplete = self.missing or self.skipped or not self.nodes or verdicts != {"pass"}
        return "inconclusive" if incomplete else "pass"


def merge(folders: Sequence[Path], expected: Sequence[str] = ()) -> Fleet:
    """The newest run of every node among ``folders`` (run folders, or folders of run folders). Raises Refused where there is none."""
    found: list[Stored] = []
    skipped: list[Skipped] = []
    for folder in folders:
        stored, broken = _read(folder)
        found += stored
        skipped += broken
    if not found and not skipped:
        raise Refused(f"no run in {', '.join(map(str, folders))} (give run folders, or a folder that holds them)")
    rigs = _rigs(found)
    newest = {node: runs[-1] for node, runs in _named(rigs).items()}
    hosts = {rig.host for rig in rigs}
    nodes = tuple(sorted(newest))
    promises = tuple(dict.fromkeys(history.label_of(check) for node in nodes for check in newest[node].checks))
    cells = {node: {history.label_of(check): _cell(check) for check in newest[node].checks} for node in nodes}
    cells, findings = _outliers(cells, promises)
    return Fleet(
        nodes=nodes,
        promises=promises,
        cells=cells,
        verdicts={node: newest[node].verdict if newest[node].finished is not None else "inconclusive" for node in nodes},
        # whoever lists a host has all its rigs
        missing=tuple(node for node in expected if node not in newest and node not in hosts),
        unlisted=tuple(node for node in nodes if expected and not {node, host_of(newest[node])} & set(expected)),
        left_out={node: len(newest[node].not_checked) for node in nodes if newest[node].not_checked},
        skipped=tuple(skipped),
        findings=findings,
        simulated=any(newest[node].simulated for node in nodes),
        folders={node: newest[node].folder for node in nodes},
    )


class _Rig:
    """Runs of one rig, in the order in which they are added: same host, same name, and GPUs in common as far as they are known."""

    def __init__(self, host: str, name: str) -> None:
        self.host, self.name = host, name
        self.gpus: set[str] = set()
        self.runs: list[Stored] = []

    def takes(self, host: str, name: str, gpus: set[str]) -> bool:
        """A card may be replaced, all of them at once are another rig."""
        return (self.host, self.name) == (host, name) and not (gpus and self.gpus and gpus.isdisjoint(self.gpus))

    def add(self, run: Stored, gpus: set[str]) -> None:
        """One more of its runs."""
        self.gpus |= gpus
        self.runs.append(run)


def host_of(run: Stored) -> str:
    """The host that the run was made on; the rig's name where it is not known."""
    return str(run.environment.get("host") or run.rig_name)


def _rigs(found: Sequence[Stored]) -> list[_Rig]:
    """The runs by rig, oldest first. One host may have several: each is a node of its own, and none hides what another failed in."""
    real = {host_of(run) for run in found if not run.simulated}
    rigs: list[_Rig] = []
    for run in sorted(found, key=lambda each: each.started):
        host = host_of(run)
        # a simulated run says nothing of a host that has a real one, and its GPUs are new ones each time
        if run.simulated and host in real:
            continue
        gpus = set() if run.simulated else _gpus(run)
        rig = next((each for each in rigs if each.takes(host, run.rig_name, gpus)), None)
        if rig is None:
            rig = _Rig(host, run.rig_name)
            rigs.append(rig)
        rig.add(run, gpus)
    return rigs


def _gpus(run: Stored) -> set[str]:
    listed = run.environment.get("gpus")
    return (
        {str(each["uuid"]) for each in listed if isinstance(each, dict) and each.get("uuid")} if isinstance(listed, list) else set()
    )


def _named(rigs: Sequence[_Rig]) -> dict[str, list[Stored]]:
    """Runs by the name of their node: the host's, with the rig's where it has several, and a GPU's where those have one name."""
    named: dict[str, list[Stored]] = {}
    for rig in rigs:
        beside = [each for each in rigs if each.host == rig.host and each is not rig]
        parts = [rig.host]
        if beside:
            parts.append(rig.name)
        if any(each.name == rig.name for each in beside):
            parts.append(min(rig.gpus, default="GPUs not known")[:12])
        named[" ".join(parts)] = rig.runs
    return named


def _read(folder: Path) -> tuple[list[Stored], list[Skipped]]:
    import msgspec

    path = folder / "run.json" if folder.is_dir() else folder
    if folder.is_dir() and not path.is_file():
        return store.runs(folder)
    try:
        return [store.read(path)], []
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        return [], [Skipped(str(path), store.why(error))]


def _cell(check: dict[str, Any]) -> Cell:
    value, unit = history.value_of(check), history.unit_of(check)
    return Cell(verdict=str(check.get("verdict")), value=value if unit in history.EARNED else None, unit=unit)


def _outliers(cells: dict[str, dict[str, Cell]], promises: Sequence[str]) -> tuple[dict[str, dict[str, Cell]], tuple[Finding, ...]]:
    import msgspec

    findings = []
    out = {node: dict(row) for node, row in cells.items()}
    for promise in promises:
        values = {node: row[promise].value for node, row in cells.items() if promise in row and row[promise].value is not None}
        numbers = [value for value in values.values() if value is not None]
        if len(numbers) < MIN_NODES:
            continue
        middle = stats.median(numbers)
        centre, spread = bulk(numbers)
        far = NormalDist().inv_cdf(1 - OUTLIER_CHANCE / (2 * len(numbers)))
        for node, value in values.items():
            if value is None or not middle:
                continue
            share = (value - middle) / abs(middle)
            outlier = abs(value - centre) > far * spread and abs(share) > OUTLIER_SHARE
            out[node][promise] = msgspec.structs.replace(out[node][promise], deviation=share, outlier=outlier)
            if outlier:
                detail = f"{promise}: {share * 100:+.1f} % off the median of {len(numbers)} nodes"
                findings.append(
                    Finding("outlier", "warn", node, detail, "compare its run with a neighbour's: pytest-sglang compare")
                )
    return out, tuple(findings)


def bulk(values: Sequence[float]) -> tuple[float, float]:
    """(centre, standard deviation) of the majority: from the shortest interval that holds more than half of the values.

    Rousseeuw and Leroy, "Robust Regression and Outlier Detection", 1987, chapter 4: unlike the median deviation it does not grow
    with the part of the nodes that is off, as long as that is less than half. Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("a spread needs two values at least")
    ordered = sorted(values)
    half = len(ordered) // 2 + 1
    low = min(range(len(ordered) - half + 1), key=lambda place: ordered[place + half - 1] - ordered[place])
    left, right = ordered[low], ordered[low + half - 1]
    return (left + right) / 2, 1.4826 * (1 + 5 / (len(ordered) - 1)) * (right - left) / 2
