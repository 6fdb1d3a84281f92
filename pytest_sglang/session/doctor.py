"""``pytest-sglang doctor``: the whole hardware side of this machine, read once, and what looks wrong. Changes nothing."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_sglang.gpu import host, links, processes
from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.gpu.power import Run, run_command
from pytest_sglang.gpu.readings import GpuLost, Missing, NoDriver
from pytest_sglang.gpu.sheet import lost, sheet
from pytest_sglang.judge import hardware as judge
from pytest_sglang.judge import health, placement, standing
from pytest_sglang.judge import links as links_judge
from pytest_sglang.record import run as records
from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.values import Finding
from pytest_sglang.rig.model import Rig
from pytest_sglang.session import health as kept
from pytest_sglang.session import promise, simulated
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.options import RunOptions

BETWEEN_S = 0.35
"""Seconds between two looks at counters of errors: what grows in so short a time grows fast."""
SEVERITIES = ("fail", "warn", "info")


def run(options: RunOptions, *, as_json: bool, hardware: str | None = None) -> int:
    """Print the machine; exit code 1 with a finding of severity fail, else 0. Raises Refused without a usable driver."""
    from pytest_sglang.session import doctor_page

    with _subject(options, hardware) as subject:
        seen = subject.look()
    print(json.dumps(seen) if as_json else "\n".join(doctor_page.lines(seen)))
    return 1 if any(each["severity"] == "fail" for each in seen["findings"]) else 0


@contextmanager
def _subject(options: RunOptions, hardware: str | None) -> Iterator[Subject]:
    """What is looked at: this machine, or a simulated one that works as if it were decoding."""
    if not options.simulated:
        if hardware is not None:
            raise Refused("--hardware is for the simulated rig only: add --rig=simulated")
        rig = promise.resolve(options) if promise.named(options) else None
        yield Subject(open_driver(), rig, run_command, simulated=False, server_pid=_listens(options.url) if rig is None else None)
        return
    with simulated.at_work(options, hardware) as simulation:
        fits = simulation.rig.config.hardware_name == promise.SIMULATED_PROMISE
        rig = promise.resolve(options) if fits else None
        yield Subject(open_driver(simulation.rig.nvml()), rig, simulation.kernel_log, simulated=True, server_pid=os.getpid())


def _listens(url: str | None) -> int | None:
    """The process that listens at the URL given on the command line."""
    from pytest_sglang.server import control
    from pytest_sglang.server.processes import listener

    found = [] if url is None else listener(control.port_of(url))
    return found[0].pid if found else None


def open_driver(module: Any = None) -> Nvml:
    """NVML (None: of this machine). Raises Refused with what was looked for, what was found, and what to do."""
    try:
        return Nvml.open(module)
    except NoDriver as error:
        raise Refused(
            "\n".join(
                [
                    "no usable NVIDIA driver here, so there is nothing to look at.",
                    f"  looked for: {error.looked_for}",
                    f"  found: {error.found}",
                    "  to see what this shows:    pytest-sglang doctor --rig=simulated",
                ]
            )
        ) from None


class Subject:
    """One machine under examination; ``look()`` may be called once. ``server_pid`` None: found through the rig file, where there is one."""

    def __init__(self, nvml: Nvml, rig: Rig | None, run: Run, *, simulated: bool, server_pid: int | None = None) -> None:
        self.nvml, self.rig, self._run, self._simulated, self._server_pid = nvml, rig, run, simulated, server_pid
        self.cards: list[Card] = []
        self.gone: dict[int, str] = {}
        self._labels: dict[str, str] = {}

    def look(self) -> dict[str, Any]:
        """Everything, as plain values; see docs/reference.md for the keys."""
        with self.nvml:
            self.cards = self.nvml.cards()
            self.gone = {index: _why(missing.reason) for index, missing in self.nvml.unopened.items()}
            self._labels = {card.pci: f"GPU {card.index}" for card in self.cards if card.pci}
            while True:
                try:
                    return self._look()
                except GpuLost as error:
                    self._lose(error)

    def _look(self) -> dict[str, Any]:
        before, begin_s = self._counters(), time.monotonic()
        sheets = [lost(index, "does not answer", why) for index, why in self.gone.items()]
        sheets = sorted([*sheets, *(sheet(card) for card in self.cards)], key=lambda each: int(each["index"]))
        topology, beings = links.read(self.nvml, self.cards), self._processes()
        time.sleep(max(0.0, BETWEEN_S - (time.monotonic() - begin_s)))
        after, seconds = self._counters(), time.monotonic() - begin_s
        messages = host.messages_since(0.0, self._run)
        findings = [
            *self._promised(topology, beings, sheets),
            *health.repeats(before, after, seconds),
            *self._standing(sheets, topology, after),
            *self._kernel(messages),
        ]
        return {
            "simulated": self._simulated,
            "rig": None if self.rig is None else self.rig.name,
            "driver": self.nvml.driver(),
            "cuda": _plain(self.nvml.cuda()),
            "kernel": host.kernel_release(),
            "gpus": sheets,
            "nvlink": _nvlink(topology, after),
            "processes": beings,
            "kernel_log": {
                "readable": not isinstance(messages, Missing),
                "reason": messages.reason if isinstance(messages, Missing) else None,
            },
            "findings": [records.plain(each) for each in _sorted(findings)],
        }

    # --- reading ---------------------------------------------------------------------------------------------------------------

    def _lose(self, error: GpuLost) -> None:
        """Go on without a card that has fallen off the bus while it was looked at."""
        card = next(each for each in self.cards if each.label == error.label)
        self.cards.remove(card)
        self.gone[card.index] = _why(str(error))

    def _counters(self) -> dict[str, int]:
        """PCIe replays and NVLink errors of every card by label."""
        found = {f"GPU {card.index} PCIe replays": card.pcie_replays() for card in self.cards}
        errors = links.link_errors(self.nvml, self.cards, links.read(self.nvml, self.cards))
        return {**{label: count for label, count in found.items() if not isinstance(count, Missing)}, **errors}

    def _processes(self) -> list[dict[str, Any]]:
        """Who holds a context on which card; ``server``: it belongs to the promised server."""
        from pytest_sglang.server.processes import tree

        mine = self._server()
        pids = {mine, *(each.pid for each in tree(mine))} if mine is not None else set()
        found: list[dict[str, Any]] = []
        for card in self.cards:
            listed = card.processes()
            found += [
                {
                    "gpu": card.index,
                    "pid": each.pid,
                    "name": card.process_name(each.pid),
                    "kind": each.kind,
                    "used_bytes": each.used_bytes,
                    "server": each.pid in pids,
                }
                for each in ([] if isinstance(listed, Missing) else listed)
            ]
        return found

    def _server(self) -> int | None:
        """Main process of the promised server; None where there is none, or it cannot be seen."""
        if self._server_pid is not None or self.rig is None or self.rig.server is None:
            return self._server_pid
        from pytest_sglang.server import control

        with tempfile.TemporaryDirectory(prefix="pytest-sglang-") as scratch:
            try:
                made = control.make(self.rig.server, clock=SystemClock(), run_dir=Path(scratch))
                self._server_pid = made.state().pid
            except control.ControlError:
                return None  # its owner cannot be asked: then nobody's process is called the server's
        return self._server_pid

    # --- judging ---------------------------------------------------------------------------------------------------------------

    def _promised(
        self, topology: links.Topology, beings: Sequence[Mapping[str, Any]], sheets: Sequence[Mapping[str, Any]]
    ) -> list[Finding]:
        """Against the rig file: identity, power limits, links, PCIe under load, placement."""
        rig = self.rig
        if rig is None or not rig.gpus:
            return []
        found, gone = [card.found() for card in self.cards], self.gone
        told = [*judge.identity(rig.gpus, found, unopened=gone, unavailable=rig.unavailable).findings]
        told += _power(rig, found)
        if rig.nvlink is not None:
            told += links_judge.nvlink(rig.nvlink, rig.gpus, found, topology.found(), unavailable=rig.unavailable).findings
        matched = judge.match(rig.gpus, found)
        busy = {each["index"] for each in sheets if each["lost"] is None and standing.works(each)}
        loaded = [gpu if gpu is not None and gpu.index in busy else None for gpu in matched]
        if any(loaded):
            told += judge.pcie_under_load(rig.gpus, loaded, unavailable=rig.unavailable).findings
        return [*told, *self._placed(rig, matched, topology, beings)]

    def _placed(
        self, rig: Rig, matched: Sequence[judge.FoundGpu | None], topology: links.Topology, beings: Sequence[Mapping[str, Any]]
    ) -> list[Finding]:
        here = sorted({each["gpu"] for each in beings if each["server"]})
        if rig.server is None or "placement" in rig.unavailable or not here:
            return []
        wanted = None
        if rig.server.gpus is not None:
            promised = [matched[position] for position in rig.server.gpus]
            wanted = [gpu.index for gpu in promised if gpu is not None]
        pids = {each["pid"] for each in beings if each["server"]}
        strangers = processes.foreign([card for card in self.cards if card.index in here], pids)
        return [
            *placement.placement(
                here,
                wanted,
                topology.found(),
                tp=rig.server.tp,
                all_gpus=[card.index for card in self.cards],
                strangers=strangers,
                exclusive=bool(rig.server.exclusive),
            ).findings
        ]

    def _standing(self, sheets: list[dict[str, Any]], topology: links.Topology, counts: Mapping[str, int]) -> list[Finding]:
        """What looks wrong whatever is promised."""
        told = [finding for each in sheets for finding in standing.card(each)]
        told += standing.limits(sheets)
        active: dict[int, list[bool]] = {}
        for link in topology.links:
            active.setdefault(link.gpu, []).append(link.active)
        promised = self.rig is not None and self.rig.declares_nvlink
        told += [] if promised else standing.links(active)
        memory = [card.memory_state() for card in self.cards]
        told += [each for each in health.memory(memory, memory, {}).findings if each.severity != "info"]
        checksums = {label: count for label, count in counts.items() if count and label.endswith(("crc flit", "crc data"))}
        if checksums:
            told.append(Finding("nvlink-checksums", "info", "NVLink", health.checksums(checksums, "since the driver was loaded")))
        for label, count in counts.items():
            if count and "link" in label and label not in checksums:
                detail = f"{count} since the driver was loaded"
                told.append(Finding("nvlink-errors", "info", label, detail, "look again under load: they should not grow"))
        return told

    def _kernel(self, messages: Missing | tuple[host.Xid, ...]) -> list[Finding]:
        """Messages of this boot: past ones, so none of them fails. A card that is gone is told by itself."""
        if isinstance(messages, Missing):
            return [Finding("xid-unreadable", "info", "kernel log", f"not readable: {messages.reason}")]
        return [
            Finding(each.kind, "warn", each.subject, f"since boot, {each.detail}", each.remedy)
            for each in host.findings(messages, self._labels)
            if each.severity != "info"
        ]


def _power(rig: Rig, found: Sequence[judge.FoundGpu]) -> list[Finding]:
    """Power limits against the promised levels: the level that most cards have is the one that is meant."""
    levels = sorted({row.power_w for row in rig.throughput if row.power_w is not None})
    promised = [gpu for gpu in judge.match(rig.gpus, found) if gpu is not None]
    common = Counter(gpu.enforced_w for gpu in promised if gpu.enforced_w is not None).most_common(1)
    meant = next((level for level in levels if common and abs(level - common[0][0]) <= judge.TOLERANCE_W), None)
    if meant is not None:
        present = [each for each, gpu in zip(rig.gpus, judge.match(rig.gpus, found), strict=True) if gpu is not None]
        return [*judge.power_limit(present, found, meant, unavailable=rig.unavailable).findings]
    if not levels or not common:
        return []
    detail = f"most cards enforce {common[0][0]:g} W; promised levels are {', '.join(f'{each:g} W' for each in levels)}"
    return [Finding("power-limit", "warn", "power", detail, f"nvidia-smi -pl {levels[0]:g}, or promise this level")]


def _nvlink(topology: links.Topology, counts: Mapping[str, int]) -> dict[str, Any]:
    speeds = {link.gpu: link.mbyte_s for link in topology.links if link.active and link.mbyte_s is not None}
    versions = {link.gpu: links.VERSIONS.get(link.version) for link in topology.links if link.version is not None}
    return {
        "pairs": [
            {"gpus": list(pair), "links": count, "mbyte_s": speeds.get(pair[0]), "version": versions.get(pair[0])}
            for pair, count in topology.pairs.items()
        ],
        "links": [records.plain(each) for each in topology.links],
        "switched": any(link.remote_type == "switch" and link.active for link in topology.links),
        "matrix": topology.matrix,
        "p2p": topology.p2p_matrix,
        "errors": {label: count for label, count in counts.items() if count and "PCIe" not in label},
        "unreadable": {str(index): missing.reason for index, missing in topology.unreadable.items()},
    }


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    """Faults first; of the same subject and kind only the gravest."""
    missing = {each.subject for each in findings if each.kind == "gpu-missing"}
    findings = [each for each in findings if not (each.kind == "gpu-lost" and each.subject in missing)]
    best: dict[tuple[str, str], Finding] = {}
    for each in findings:
        key = (each.kind, each.subject)
        if key not in best or SEVERITIES.index(each.severity) < SEVERITIES.index(best[key].severity):
            best[key] = each
    gravest = [each for each in dict.fromkeys(findings) if best[each.kind, each.subject].severity == each.severity]
    return sorted(gravest, key=lambda each: SEVERITIES.index(each.severity))


def _why(reason: str) -> str:
    """The reason of a lost card, without its name and without what its finding advises."""
    return kept.SILENT if " is lost: " in reason else reason


def _plain(reading: Any) -> Any:
    return None if isinstance(reading, Missing) else reading
