"""The sampler's process: power and energy 20 times a second, the slow readings twice a second, one line each into a file.

A process of its own, so that a measuring client with hundreds of streams costs it no sample. It ends when its standard input
closes, so it never outlives the run that started it. ``gpu.energy`` starts it.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
from typing import IO, Any

from pytest_sglang.gpu.nvml import Card, GpuLost, Missing, NoDriver, Nvml
from pytest_sglang.gpu.samples import VERSION

NICE = -10
_SLOW = ("temperature_c", "sm_mhz", "mem_mhz", "event_reasons_mask")


class Sampler:
    """Reads these cards and writes lines."""

    def __init__(self, cards: list[Card], out: IO[str]) -> None:
        self._cards: list[Card | None] = list(cards)
        self._out = out
        self._told: set[tuple[int, str]] = set()

    def head(self, fast_hz: float, slow_hz: float) -> None:
        """The first line: which cards, in which order."""
        self._write(["h", VERSION, [card.uuid for card in self._cards if card is not None], fast_hz, slow_hz])

    def fast(self) -> None:
        """Power and energy of every card, each with its own time."""
        line: list[Any] = ["f"]
        for position, card in enumerate(self._cards):
            line.append(None if card is None else self._fast(position, card))
        self._write(line)

    def _fast(self, position: int, card: Card) -> list[float | None] | None:
        try:
            readings = {
                "power_average_w": card.power_average_w(),
                "power_instant_w": card.power_instant_w(),
                "energy_j": card.energy_j(),
            }
        except GpuLost as lost:
            self._lose(position, lost)
            return None
        now = round(time.time(), 4)
        return [now, *(self._number(position, name, reading) for name, reading in readings.items())]

    def slow(self, position: int) -> None:
        """Temperature, clocks, reasons and PCIe link of one card."""
        card = self._cards[position]
        if card is None:
            return
        try:
            readings: dict[str, Any] = {name: getattr(card, name)() for name in _SLOW}
            pcie = card.pcie()
        except GpuLost as lost:
            self._lose(position, lost)
            return
        readings.update(pcie_gen=pcie.gen, pcie_width=pcie.width)
        self._write(
            ["s", position, round(time.time(), 4), *(self._number(position, name, each) for name, each in readings.items())]
        )

    def _number(self, position: int, name: str, reading: Any) -> Any:
        if not isinstance(reading, Missing):
            return reading
        if (position, name) not in self._told:
            self._told.add((position, name))
            self._write(["m", position, name, reading.reason])
        return None

    def _lose(self, position: int, lost: GpuLost) -> None:
        self._cards[position] = None
        self._write(["x", position, round(time.time(), 4), str(lost)])

    def _write(self, item: list[Any]) -> None:
        self._out.write(json.dumps(item, separators=(",", ":")) + "\n")
        self._out.flush()


def loop(sampler: Sampler, count: int, fast_hz: float, slow_hz: float, stdin: int, parent: int) -> None:
    """Sample on a fixed schedule until ``stdin`` closes. Slow readings are spread over the ticks, so that no tick is a long one."""
    period = 1.0 / fast_hz
    spread = max(1, round(fast_hz / slow_hz))
    begin = time.monotonic()
    tick = 0
    while True:
        sampler.fast()
        for position in range(tick % spread, count, spread):
            sampler.slow(position)
        # a late tick is dropped, not caught up: a burst of samples would say nothing new
        tick = max(tick + 1, int((time.monotonic() - begin) / period) + 1)
        wait = max(0.0, begin + tick * period - time.monotonic())
        readable, _, _ = select.select([stdin], [], [], wait)
        if readable and not os.read(stdin, 4096):
            return
        if os.getppid() != parent:
            return


def open_module(opener: str | None, argument: str | None) -> Any | None:
    """The pynvml-like object that ``package.module:function`` gives for ``argument``; None = the real pynvml."""
    if opener is None:
        return None
    name, _, function = opener.partition(":")
    return getattr(importlib.import_module(name), function)(*([] if argument is None else [argument]))


def _hurry() -> None:
    """Before others on a busy machine, where that is allowed (root): it needs little, and needs it in time."""
    try:
        os.nice(NICE)
    except OSError:
        pass


def main(arguments: list[str]) -> int:
    """Run until standard input closes; exit code 3 where no driver or none of the asked cards can be opened (said in the file)."""
    asked = json.loads(arguments[0])
    # Ctrl-C reaches the whole foreground group: the run still needs samples while it puts things back
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    with open(asked["path"], "a", encoding="utf-8") as out:
        try:
            nvml = Nvml.open(open_module(asked["opener"], asked["argument"]))
            cards = [card for card in nvml.cards() if asked["uuids"] is None or card.uuid in asked["uuids"]]
        except NoDriver as error:
            out.write(json.dumps(["e", str(error)]) + "\n")
            return 3
        if not cards:
            out.write(json.dumps(["e", "none of the asked GPUs is here"]) + "\n")
            return 3
        sampler = Sampler(cards, out)
        sampler.head(asked["fast_hz"], asked["slow_hz"])
        try:
            loop(sampler, len(cards), asked["fast_hz"], asked["slow_hz"], sys.stdin.fileno(), parent)
        finally:
            nvml.close()
    return 0


if __name__ == "__main__":
    _hurry()
    sys.exit(main(sys.argv[1:]))
