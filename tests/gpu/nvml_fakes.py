# ruff: noqa: N802 - the functions have the names of pynvml
"""A module in place of pynvml, fed by data: recorded cards, rigs made by hand, and clockwork power for the sampler."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "nvml"

_TEXTS = {
    2: "Invalid Argument",
    3: "Not Supported",
    4: "Insufficient Permissions",
    9: "Driver Not Loaded",
    12: "NVML Shared Library Not Found",
    13: "Function Not Found",
    15: "GPU is lost",
    18: "RM has detected an NVML/RM version mismatch.",
    28: "GPU not found",
    999: "Unknown Error",
}


class NVMLError(Exception):
    """As pynvml's: a return code with a text."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return _TEXTS[self.value]


class Err:
    """An answer that is an error with this return code."""

    def __init__(self, code: int) -> None:
        self.code = code


NOT_SUPPORTED = Err(3)
Answers = dict[str, Any]


class FakeNvml:
    """``cards``: for each the answers to ``nvmlDeviceGet<name>``: a value, an Err, or a function of the further arguments.

    ``fields``: answers of nvmlDeviceGetFieldValues by field number. What a card has no answer for is Not Supported.
    """

    NVMLError = NVMLError
    NVML_NVLINK_MAX_LINKS = 36
    NVML_FI_DEV_POWER_INSTANT = 186

    def __init__(self, cards: list[Answers], *, init: int = 0, driver: Any = "580.159.04") -> None:
        self.cards, self.init, self.driver = cards, init, driver
        self.closed = 0
        self.calls: list[tuple[Any, ...]] = []
        self.without: set[str] = set()
        """Functions that this binding does not have."""
        self.handles: dict[int, Any] = {}

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "without"):
            raise AttributeError(name)
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet") or name in self.without:
            raise AttributeError(name)
        return lambda handle, *arguments: self._answer(handle, name.removeprefix("nvmlDeviceGet"), *arguments)

    def _answer(self, handle: int, name: str, *arguments: Any) -> Any:
        self.calls.append((name, handle, *arguments))
        answers = self.cards[handle]
        if "lost" in answers:
            raise NVMLError(answers["lost"])
        answer = answers.get(name, NOT_SUPPORTED)
        if callable(answer):
            answer = answer(*arguments)
        if isinstance(answer, Err):
            raise NVMLError(answer.code)
        return answer

    def nvmlInit(self) -> None:
        if self.init:
            raise NVMLError(self.init)

    def nvmlShutdown(self) -> None:
        self.closed += 1

    def nvmlSystemGetDriverVersion(self) -> Any:
        if isinstance(self.driver, Err):
            raise NVMLError(self.driver.code)
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.handles:
            raise NVMLError(self.handles[index])
        return index

    def nvmlDeviceGetFieldValues(self, handle: int, numbers: list[int]) -> list[Any]:
        if "lost" in self.cards[handle]:
            raise NVMLError(self.cards[handle]["lost"])
        fields = self.cards[handle].get("fields", {})
        return [_field(fields.get(number, NOT_SUPPORTED)) for number in numbers]

    def nvmlDeviceSetPowerManagementLimit(self, handle: int, milliwatts: int) -> None:
        self.calls.append(("SetPowerManagementLimit", handle, milliwatts))
        answers = self.cards[handle]
        refused = answers.get("set")
        if isinstance(refused, Err):
            raise NVMLError(refused.code)
        answers["PowerManagementLimit"] = milliwatts
        answers["EnforcedPowerLimit"] = answers.get("clamp", milliwatts)


def _field(answer: Any) -> Any:
    if isinstance(answer, Err):
        return SimpleNamespace(nvmlReturn=answer.code, valueType=0, value=SimpleNamespace())
    kind, value = answer if isinstance(answer, tuple) else (1, answer() if callable(answer) else answer)
    name = {0: "dVal", 1: "uiVal", 3: "ullVal"}[kind]
    return SimpleNamespace(nvmlReturn=0, valueType=kind, value=SimpleNamespace(**{name: value}))


# --- cards ----------------------------------------------------------------------------------------------------------------


def recorded_h200() -> Answers:
    """Every answer of the recorded idle H200 (driver 580.159.04), NotSupported included."""
    answers: Answers = {}
    text = (DATA / "h200-nvml-dump.txt").read_text()
    for line in text.splitlines()[1:]:
        name, _, value = line.partition(" ")
        if not re.fullmatch(r"[A-Z][A-Za-z]+", name):
            continue
        answers[name] = _value(value)
    clocks = {1: (345, 1980), 2: (3201, 3201)}
    answers["ClockInfo"] = lambda kind: clocks[kind][0]
    answers["MaxClockInfo"] = lambda kind: clocks[kind][1]
    answers["Temperature"] = lambda sensor: 43
    answers["GraphicsRunningProcesses"] = []
    answers["fields"] = {186: (1, 79890)}
    return answers


def _value(text: str) -> Any:
    if text.startswith("ERR"):
        return NOT_SUPPORTED
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(value, dict):
        return SimpleNamespace(**{key: int(each) if str(each).isdigit() else each for key, each in value.items()})
    return value


def card_3090(index: int, watts: float = 250.0, **more: Any) -> Answers:
    """A GeForce RTX 3090 at a power limit, without what such a card does not tell."""
    answers: Answers = {
        "Name": "NVIDIA GeForce RTX 3090",
        "UUID": f"GPU-0000000{index}-3090",
        "PciInfo": SimpleNamespace(busId=f"00000000:{index + 1:02X}:00.0"),
        "PersistenceMode": 1,
        "PowerManagementLimit": round(watts * 1000),
        "EnforcedPowerLimit": round(watts * 1000),
        "PowerManagementDefaultLimit": 350000,
        "PowerManagementLimitConstraints": [100000, 390000],
        "PowerUsage": 25000,
        "TotalEnergyConsumption": 1000000,
        "Temperature": lambda sensor: 40 + index,
        "ClockInfo": lambda kind: 210 if kind == 1 else 405,
        "MaxClockInfo": lambda kind: 2100 if kind == 1 else 9751,
        "CurrentClocksEventReasons": 1,
        "CurrPcieLinkGeneration": 1,
        "CurrPcieLinkWidth": 16,
        "MaxPcieLinkGeneration": 4,
        "MaxPcieLinkWidth": 16,
        "PcieReplayCounter": 0,
        "CudaComputeCapability": (8, 6),
        "ComputeRunningProcesses": [],
        "GraphicsRunningProcesses": [],
        "MemoryInfo": SimpleNamespace(total=25769803776, used=1048576, free=25768755200),
        "fields": {186: (1, 26000)},
    }
    return {**answers, **more}


def six_3090(**changes: Any) -> FakeNvml:
    """Six cards, bridges on 0-1, 2-3, 4-5 with four links each; every pair of cards below one host bridge."""
    cards = [card_3090(index, **changes) for index in range(6)]
    for index, card in enumerate(cards):
        bridge(card, partner=index ^ 1)
        card["TopologyCommonAncestor"] = 30
        card["P2PStatus"] = lambda other, kind, here=index: 0 if other == here ^ 1 else 5
    return FakeNvml(cards)


def bridge(card: Answers, *, partner: int, active: int = 4, links: int = 4) -> None:
    """Give a card ``links`` NVLinks of which ``active`` lead to card ``partner``; link numbers beyond answer Invalid Argument."""
    beyond: Callable[[int], Any] = lambda link: NOT_SUPPORTED if link < 12 else Err(2)  # noqa: E731
    card["NvLinkState"] = lambda link: int(link < active) if link < links else beyond(link)
    card["NvLinkRemotePciInfo"] = lambda link: (
        SimpleNamespace(busId=f"00000000:{partner + 1:02X}:00.0") if link < active else NOT_SUPPORTED
    )
    card["NvLinkRemoteDeviceType"] = lambda link: 0 if link < active else NOT_SUPPORTED
    card["NvLinkVersion"] = lambda link: 5 if link < links else NOT_SUPPORTED
    card["NvLinkErrorCounter"] = lambda link, counter: 0


def eight_on_nvswitch() -> FakeNvml:
    """Eight H100s with 18 links each to NVSwitches, on two sockets."""
    cards = []
    for index in range(8):
        card = {
            **card_3090(index),
            "Name": "NVIDIA H100 80GB HBM3",
            "NvLinkState": lambda link: 1 if link < 18 else Err(2),
            "NvLinkRemotePciInfo": lambda link: SimpleNamespace(busId=b"00000000:C1:00.0"),
            "NvLinkRemoteDeviceType": lambda link: 2,
            "NvLinkVersion": lambda link: 7,
            "TopologyCommonAncestor": lambda other, here=index: 40 if other // 4 == here // 4 else 50,
        }
        cards.append(card)
    return FakeNvml(cards)


def pcie_only() -> FakeNvml:
    """Four cards without NVLink: two behind one switch, one below the same host bridge, one on the other socket."""
    levels = {(0, 1): 10, (0, 2): 30, (1, 2): 20, (0, 3): 50, (1, 3): 50, (2, 3): Err(3)}
    return FakeNvml(
        [{**card_3090(index), "TopologyCommonAncestor": lambda other, here=index: levels[here, other]} for index in range(4)]
    )


# --- for the sampler's process ------------------------------------------------------------------------------------------------


def open_clockwork(argument: str) -> FakeNvml:
    """Two cards whose energy counter moves every 100 ms at 300 W, for another process to open.

    ``argument``: words of faults: "lost" (card 1 is lost after 1.5 s), "plain" (no counter), "dies" (the process ends after 0.5 s),
    "nodriver".
    """
    begin = time.time()
    words = argument.split()
    cards = [card_3090(0), card_3090(1)]

    def joules() -> int:
        return int(300_000 * (int((time.time() - begin) * 10) / 10 + 1000))

    def watts() -> int:
        if "dies" in words and time.time() > begin + 0.5:
            raise SystemExit(7)
        if "lost" in words and time.time() > begin + 1.5:
            cards[1]["lost"] = 15
        return 300_000

    for card in cards:
        card["TotalEnergyConsumption"] = NOT_SUPPORTED if "plain" in words else joules
        card["PowerUsage"] = watts
        card["CurrentClocksEventReasons"] = 4
        card["fields"] = {186: lambda: 300_000}
    return FakeNvml(cards, init=9 if "nodriver" in words else 0)
