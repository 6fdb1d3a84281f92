"""The simulated cards' life in a file mapped into memory: limits, power, energy, temperature. Always in real time.

Between two changes everything has a closed form: power approaches its target with a time constant, energy is its integral,
temperature follows slowly. A change writes one *piece* (the state of every card at that moment) into a ring and then publishes its
number, so that a reader needs no lock and a writer killed half way leaves the piece before it in force.

Over 400 lines: the layout of the shared file and the laws of time that write it belong side by side.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.simulator import procs
from pytest_sglang.simulator.hardware import SLOWDOWN_C, SLOWED, Hardware, Trait

NAME = "state"
TAU_W_S = 0.3
"""Time constant of a card's power after its load or limit changes."""
TAU_C_S = 45.0
"""Time constant of a card's temperature."""
COUNTER_STEP_S = 0.1
"""The energy counter moves this often."""
AVERAGE_S = 1.0
"""Length of the running average that NVML gives as power usage."""
COOLER_C = 3.0
"""A card that is too hot gets its clocks back this far below the temperature at which it lost them."""

_MAGIC = b"RIGGPU1\0"
_PIECES = 64
_HEAD = struct.Struct("<8sqqqqq")  # magic, number of cards, published pieces, owner pid, owner start ticks, starts of the rig
_OWNER = struct.Struct("<qq")
_PUBLISHED_AT, _OWNER_AT = 16, 24
_TIME = struct.Struct("<d")
_CARD = struct.Struct("<22d")


class CardPiece(NamedTuple):
    """One card from the begin of a piece on. Moments are monotonic, inf = never.

    ``limit_w`` is what was asked for; ``fallback_w`` becomes it at ``fallback_at_s``. ``slowed`` 1.0: too hot, from ``hot_at_s`` on.
    ``lost_j``: what the energy counter had counted when it was lost, at ``reset_at_s``. ``capped_s`` and ``hot_s``: how long the power
    cap and heat have held the clocks. ``works``: its share of the server's load.
    """

    limit_w: float
    energy_j: float
    power_w: float
    target_w: float
    temperature_c: float
    target_c: float
    load: float
    memory_b: float
    fallback_at_s: float
    fallback_w: float
    clamp_w: float = math.inf
    hotter_c: float = 0.0
    brake: float = 1.0
    reset_after_s: float = math.inf
    slowed: float = 0.0
    hot_at_s: float = math.inf
    reset_at_s: float = math.inf
    lost_j: float = 0.0
    capped_s: float = 0.0
    hot_s: float = 0.0
    busy_s: float = 0.0
    works: float = 1.0

    @property
    def enforced_w(self) -> float:
        """The limit that is kept."""
        return min(self.limit_w, self.clamp_w)

    @property
    def share(self) -> float:
        """Share of its speed that heat and brake leave a loaded card."""
        return self.brake * (SLOWED if self.slowed else 1.0)

    @property
    def next_s(self) -> float:
        """When something happens on it by itself."""
        return min(self.fallback_at_s, self.hot_at_s, self.reset_at_s)

    def power_after(self, elapsed_s: float) -> float:
        """Board power in watts."""
        return self.target_w + (self.power_w - self.target_w) * math.exp(-max(0.0, elapsed_s) / TAU_W_S)

    def energy_after(self, elapsed_s: float) -> float:
        """Energy counter in joules; before the begin of the piece the power is taken as constant."""
        if elapsed_s <= 0:
            return self.energy_j + self.power_w * elapsed_s
        settling_j = (self.power_w - self.target_w) * TAU_W_S * (1.0 - math.exp(-elapsed_s / TAU_W_S))
        return self.energy_j + self.target_w * elapsed_s + settling_j

    def temperature_after(self, elapsed_s: float) -> float:
        """Temperature in degrees Celsius."""
        return self.target_c + (self.temperature_c - self.target_c) * math.exp(-max(0.0, elapsed_s) / TAU_C_S)

    def busy_after(self, elapsed_s: float) -> float:
        """Seconds of load that the card has had: for what grows while it works."""
        return self.busy_s + (max(0.0, elapsed_s) if self.load > 0.5 else 0.0)


class Piece(NamedTuple):
    """Every card from ``begin_s`` (CLOCK_MONOTONIC) on."""

    begin_s: float
    cards: tuple[CardPiece, ...]


class CardNow(NamedTuple):
    """One card at a moment. ``energy_j`` moves in steps, ``average_w`` is a running average, as NVML gives them."""

    limit_w: float
    power_w: float
    average_w: float
    energy_j: float
    temperature_c: float
    load: float
    memory_b: int
    requested_w: float
    share: float
    capped: bool
    hot: bool
    braked: bool
    capped_s: float
    hot_s: float
    busy_s: float


class HardwareState:
    """The state of the cards of the rig in ``directory``, shared by every process that opens it."""

    def __init__(self, directory: Path, hardware: Hardware) -> None:
        self._hardware = hardware
        with open(Path(directory) / NAME, "r+b") as file:
            self._lock_path = Path(directory) / f"{NAME}.lock"
            self._map = mmap.mmap(file.fileno(), 0)
        if self._map[:8] != _MAGIC:
            raise ValueError(f"{directory} holds no simulated hardware")
        self._count = hardware.gpu.count
        self._size = _TIME.size + self._count * _CARD.size
        self._thread = threading.Lock()

    @classmethod
    def create(
        cls,
        directory: Path,
        hardware: Hardware,
        power_w: float,
        fallbacks: Sequence[int] = (),
        traits: Mapping[int, Trait] | None = None,
    ) -> HardwareState:
        """New cards, idle, every limit at ``power_w`` but those of ``fallbacks``, which have lost it to their default."""
        gpu, count = hardware.gpu, hardware.gpu.count
        size = _HEAD.size + _PIECES * (_TIME.size + count * _CARD.size)
        with open(Path(directory) / NAME, "wb") as file:
            file.write(_HEAD.pack(_MAGIC, count, 0, 0, 0, 0).ljust(size, b"\0"))
        (Path(directory) / f"{NAME}.lock").touch()
        state = cls(directory, hardware)
        cards = []
        for index in range(count):
            limit_w = gpu.default_w if index in fallbacks else power_w
            idle_w = gpu.loaded_w(index, limit_w, 0.0)
            trait = (traits or {}).get(index, Trait())
            usual_c = gpu.steady_c(index, idle_w)
            idle_c = usual_c if trait.idle_c is None else trait.idle_c
            energy_j = 41_250.0 + 1_375.0 * index
            card = CardPiece(limit_w, energy_j, idle_w, idle_w, idle_c, idle_c, 0.0, 0.0, math.inf, gpu.default_w)
            own = {name: getattr(trait, name) for name in ("clamp_w", "brake", "reset_after_s", "works")}
            cards.append(card._replace(hotter_c=idle_c - usual_c, **own))
        state._publish(Piece(time.monotonic(), tuple(cards)))
        return state

    # --- reading -----------------------------------------------------------------------------------------------------------

    def now(self, moment_s: float | None = None) -> tuple[CardNow, ...]:
        """Every card now (or at a recent CLOCK_MONOTONIC moment)."""
        if moment_s is None:
            moment_s = self._settle()
        history = self._history(moment_s)
        piece = self._covering(history, moment_s)
        step_s = math.floor(moment_s / COUNTER_STEP_S) * COUNTER_STEP_S
        stepped = self._covering(history, step_s)
        found = []
        for index, card in enumerate(piece.cards):
            elapsed_s = moment_s - piece.begin_s
            mean_w = (self._energy(history, index, moment_s) - self._energy(history, index, moment_s - AVERAGE_S)) / AVERAGE_S
            found.append(
                CardNow(
                    limit_w=card.enforced_w,
                    power_w=card.power_after(elapsed_s),
                    average_w=mean_w,
                    energy_j=self._energy(history, index, step_s) - stepped.cards[index].lost_j,
                    temperature_c=card.temperature_after(elapsed_s),
                    load=card.load,
                    memory_b=int(card.memory_b),
                    requested_w=card.limit_w,
                    share=card.share if card.load else 1.0,
                    capped=self._capped(card),
                    hot=bool(card.slowed and card.load),
                    braked=bool(card.brake < 1.0 and card.load),
                    capped_s=card.capped_s + self._capped(card) * max(0.0, elapsed_s),
                    hot_s=card.hot_s + bool(card.slowed and card.load) * max(0.0, elapsed_s),
                    busy_s=card.busy_after(elapsed_s),
                )
            )
        return tuple(found)

    def limits_w(self) -> tuple[float, ...]:
        """The enforced limit of every card."""
        self._settle()
        return tuple(card.enforced_w for card in self._read(self._published()).cards)

    def pace(self) -> tuple[float, float]:
        """The lowest limit (watts) among the serving cards, and the share of its speed that heat and brakes leave the slowest."""
        self._settle()
        cards = self._read(self._published()).cards
        serving = [cards[index] for index in self._hardware.serving]
        return min(card.enforced_w for card in serving), min(card.share for card in serving)

    def _capped(self, card: CardPiece) -> bool:
        """The software power cap holds its clocks: it works, nothing else holds it, and it draws all that its limit allows."""
        free = card.load > 0.5 and card.share == 1.0
        return free and self._hardware.curve.drawn_w(card.enforced_w) == card.enforced_w

    def busy_s(self, index: int) -> float:
        """Seconds of load that one card has had."""
        piece = self._read(self._published())
        return piece.cards[index].busy_after(time.monotonic() - piece.begin_s)

    def owner(self) -> tuple[int, int]:
        """Pid and start ticks of the process that holds the serving cards; (0, 0) = nobody."""
        pid, ticks = _OWNER.unpack_from(self._map, _OWNER_AT)
        return (pid, ticks) if procs.alive(pid, ticks) else (0, 0)

    def _energy(self, history: Sequence[Piece], index: int, moment_s: float) -> float:
        piece = self._covering(history, moment_s)
        return piece.cards[index].energy_after(moment_s - piece.begin_s)

    @staticmethod
    def _covering(history: Sequence[Piece], moment_s: float) -> Piece:
        """The piece in force at a moment; ``history`` is newest first."""
        return next((piece for piece in history if piece.begin_s <= moment_s), history[-1])

    def _history(self, moment_s: float) -> list[Piece]:
        """Pieces newest first, back to where the running average begins or as far as the ring goes."""
        while True:
            published = self._published()
            pieces: list[Piece] = []
            for number in range(published, max(0, published - _PIECES + 2), -1):
                pieces.append(self._read(number))
                if pieces[-1].begin_s <= moment_s - AVERAGE_S - COUNTER_STEP_S:
                    break
            if self._published() - published < 2:  # a slower reader might have seen slots that were written anew meanwhile
                return pieces

    def _published(self) -> int:
        return int.from_bytes(self._map[_PUBLISHED_AT : _PUBLISHED_AT + 8], "little")

    def _read(self, number: int) -> Piece:
        start = _HEAD.size + (number % _PIECES) * self._size
        (begin_s,) = _TIME.unpack_from(self._map, start)
        cards = _CARD.iter_unpack(self._map[start + _TIME.size : start + self._size])
        return Piece(begin_s, tuple(CardPiece(*each) for each in cards))

    # --- changing ----------------------------------------------------------------------------------------------------------

    def set_limit(self, index: int, watts: float, *, falls_back_after_s: float | None = None) -> None:
        """Set a card's limit; ``falls_back_after_s``: it is lost to the default again after that time."""
        fallback_at_s = math.inf if falls_back_after_s is None else time.monotonic() + falls_back_after_s
        self._change(lambda number, card: card._replace(limit_w=watts, fallback_at_s=fallback_at_s) if number == index else card)

    def set_load(self, load: float, memory_b: int | None = None) -> None:
        """Load of the serving cards, 0 to 1, and the memory that is taken on them (None = as it is)."""
        serving = self._hardware.serving

        def change(number: int, card: CardPiece) -> CardPiece:
            if number not in serving:
                return card
            return card._replace(load=load * card.works, memory_b=card.memory_b if memory_b is None else float(memory_b))

        self._change(change)

    def set_owner(self, pid: int) -> None:
        """The process that holds the serving cards; 0 = nobody, they are idle and empty."""
        with self._locked():
            _OWNER.pack_into(self._map, _OWNER_AT, pid, procs.start_ticks(pid) if pid else 0)
        if not pid:
            self.set_load(0.0, 0)

    def pretend(self, pid: int, *, memory_b: int = int(21.2 * 2**30), busy_s: float = 60.0) -> None:
        """Process ``pid`` holds the serving cards and has loaded them for ``busy_s``: power and temperature have settled."""
        self.set_owner(pid)
        self.set_load(1.0, memory_b)
        with self._locked():
            piece = self._read(self._published())
            settled = [
                card._replace(power_w=card.target_w, temperature_c=card.target_c, busy_s=card.busy_s + busy_s if card.load else 0.0)
                for card in piece.cards
            ]
            self._publish(Piece(time.monotonic(), tuple(settled)))

    def _change(self, change: Callable[[int, CardPiece], CardPiece]) -> None:
        with self._locked():
            self._settle_locked(time.monotonic())
            now_s = time.monotonic()
            self._publish(self._moved(self._read(self._published()), now_s, change))

    def _moved(self, piece: Piece, now_s: float, change: Callable[[int, CardPiece], CardPiece]) -> Piece:
        """The piece that begins at ``now_s``, with every card changed and its targets set anew."""
        cards, elapsed_s = [], now_s - piece.begin_s
        for index, card in enumerate(piece.cards):
            grown = card._replace(
                energy_j=card.energy_after(elapsed_s),
                power_w=card.power_after(elapsed_s),
                temperature_c=card.temperature_after(elapsed_s),
                capped_s=card.capped_s + self._capped(card) * elapsed_s,
                hot_s=card.hot_s + bool(card.slowed and card.load) * elapsed_s,
                busy_s=card.busy_after(elapsed_s),
            )
            changed = change(index, grown)
            if changed.load and not card.load:
                changed = changed._replace(reset_at_s=now_s + changed.reset_after_s)
            cards.append(self._aimed(index, changed, now_s))
        return Piece(now_s, tuple(cards))

    def _aimed(self, index: int, card: CardPiece, now_s: float) -> CardPiece:
        """The card with its targets, and the moment at which it will be too hot."""
        gpu, hot = self._hardware.gpu, card.temperature_c >= SLOWDOWN_C and card.load > 0
        card = card._replace(slowed=float(hot or (card.slowed and card.temperature_c > SLOWDOWN_C - COOLER_C)))
        idle_w = gpu.loaded_w(index, card.enforced_w, 0.0)
        loaded_w = gpu.loaded_w(index, self._hardware.curve.drawn_w(card.enforced_w), card.load)
        target_w = idle_w + card.share * (loaded_w - idle_w)
        target_c = gpu.steady_c(index, target_w) + card.hotter_c
        if card.slowed:
            target_c = min(target_c, SLOWDOWN_C + 1.0)  # what it slows down for
        hot_at_s = math.inf
        if card.load and not card.slowed and target_c > SLOWDOWN_C:
            hot_at_s = now_s + TAU_C_S * math.log((target_c - card.temperature_c) / (target_c - SLOWDOWN_C))
        return card._replace(target_w=target_w, target_c=target_c, hot_at_s=hot_at_s)

    def _settle(self) -> float:
        """Let happen what is due: limits that fall back, heat, lost counters, the end of a dead process's load.

        Gives the moment of the look.
        """
        now_s = time.monotonic()
        if self._due(now_s):
            try:
                with self._locked():
                    now_s = time.monotonic()
                    self._settle_locked(now_s)
            except FileNotFoundError:
                pass  # the rig was removed: nothing happens on it any more
        return now_s

    def _due(self, now_s: float) -> bool:
        cards = self._read(self._published()).cards
        if any(card.next_s <= now_s for card in cards):
            return True
        busy = any(card.load or card.memory_b for card in cards)
        return busy and self.owner() == (0, 0)

    def _settle_locked(self, now_s: float) -> None:
        piece = self._read(self._published())
        while (moment_s := min(card.next_s for card in piece.cards)) <= now_s:
            piece = self._moved(piece, max(moment_s, piece.begin_s), _happening(moment_s))
            self._publish(piece)
        if any(card.load or card.memory_b for card in piece.cards) and self.owner() == (0, 0):
            self._publish(self._moved(piece, now_s, lambda _, card: card._replace(load=0.0, memory_b=0.0)))

    def _publish(self, piece: Piece) -> None:
        number = self._published() + 1
        start = _HEAD.size + (number % _PIECES) * self._size
        _TIME.pack_into(self._map, start, piece.begin_s)
        for index, card in enumerate(piece.cards):
            _CARD.pack_into(self._map, start + _TIME.size + index * _CARD.size, *card)
        self._map[_PUBLISHED_AT : _PUBLISHED_AT + 8] = number.to_bytes(8, "little")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, over all threads and processes; a dead writer's lock is gone with it."""
        with self._thread:
            handle = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)


def _happening(moment_s: float) -> Callable[[int, CardPiece], CardPiece]:
    """What happens on a card by itself at a moment."""

    def happen(_: int, card: CardPiece) -> CardPiece:
        if card.fallback_at_s <= moment_s:
            card = card._replace(limit_w=card.fallback_w, fallback_at_s=math.inf)
        if card.hot_at_s <= moment_s:
            card = card._replace(slowed=1.0, temperature_c=max(card.temperature_c, SLOWDOWN_C))
        if card.reset_at_s <= moment_s:
            card = card._replace(lost_j=card.energy_j, reset_at_s=math.inf)
        return card

    return happen
