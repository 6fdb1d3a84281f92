"""The cards of a run: NVML opened once, promised GPUs matched with the ones found, refusals before anything is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.gpu.readings import NoDriver
from pytest_sglang.judge import hardware as judge
from pytest_sglang.judge.health import FoundMemory
from pytest_sglang.rig.model import GpuPromise, Rig
from pytest_sglang.session import health, sources
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.options import RunOptions

if TYPE_CHECKING:
    from pytest_sglang.session.simulated import Simulation


@dataclass(frozen=True, slots=True)
class PromisedCard:
    """A promised GPU and the card that it is here; None = not found."""

    position: int
    promise: GpuPromise
    card: Card | None

    @property
    def label(self) -> str:
        """How messages name it."""
        return self.promise.label


class Hardware:
    """NVML and the promised cards of a rig."""

    def __init__(self, nvml: Nvml, rig: Rig, context: dict[str, str]) -> None:
        self.nvml, self.context = nvml, context
        self.cards: tuple[Card, ...] = tuple(nvml.cards())
        by_uuid = {card.uuid: card for card in self.cards}
        matched = judge.match(rig.gpus, self.found())
        self.promised: tuple[PromisedCard, ...] = tuple(
            PromisedCard(position, promise, None if gpu is None else by_uuid[gpu.uuid])
            for position, (promise, gpu) in enumerate(zip(rig.gpus, matched, strict=True))
        )
        wanted = rig.server.gpus if rig.server is not None and rig.server.gpus is not None else None
        self._serving = tuple(range(len(self.promised))) if wanted is None else wanted
        tp = rig.server.tp if rig.server is not None else None
        self.all_work = tp is not None and tp == len(self._serving)
        """Each serving card is one rank of the tensor parallel group: then all of them work for every token."""
        self.memory_before: tuple[FoundMemory, ...] = tuple(health.memory(self)[0])
        """Memory errors of the promised cards as the run found them."""

    def found(self) -> list[judge.FoundGpu]:
        """Every card of the machine as it stands now, as the judge takes it."""
        return [card.found() for card in self.cards]

    @property
    def present(self) -> tuple[Card, ...]:
        """The promised cards that are here."""
        return tuple(each.card for each in self.promised if each.card is not None)

    @property
    def serving(self) -> tuple[Card, ...]:
        """The cards on which the server is promised to run, as far as they are here."""
        cards = [self.promised[position].card for position in self._serving if position < len(self.promised)]
        return tuple(card for card in cards if card is not None)

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUIDs of the promised cards that are here: what the run locks."""
        return tuple(card.uuid for card in self.present)

    def close(self) -> None:
        """Let go of the driver."""
        self.nvml.close()


def open_hardware(rig: Rig, options: RunOptions, simulation: Simulation | None) -> Hardware | None:
    """The cards, if the rig file promises any. Raises Refused: no driver, or a level outside a card's range or above ``max_total_w``."""
    if not rig.gpus and not rig.declares_nvlink:
        return None
    module: Any = None
    context = {"nvml": "real"}
    if simulation is not None:
        module, context = simulation.rig.nvml(), simulation.nvml_context
    try:
        nvml = Nvml.open(module)
    except NoDriver as error:
        url = rig.server.url if rig.server is not None else None
        raise Refused(
            "\n".join(
                [
                    f"nothing to judge: {rig.path.name} promises {len(rig.gpus)} GPU(s), and this machine has no usable NVIDIA driver.",
                    f"  driver library: {error}",
                    f"  server: {sources.server(url or sources.DEFAULT_URL)}",
                    f"  rig file: {rig.path}",
                    "  to judge a server without its hardware: remove [[gpus]] and [nvlink] from the rig file",
                    "  to try the simulated rig:    pytest acceptance/ --power=250 --rig=simulated",
                ]
            )
        ) from None
    found = Hardware(nvml, rig, context)
    problems = range_problems(found, rig, options)
    if problems:
        found.close()
        raise Refused("\n".join(problems))
    return found


def range_problems(found: Hardware, rig: Rig, options: RunOptions) -> list[str]:
    """Levels that a card cannot take, each naming the card and its range; levels that the power supply must not be asked for."""
    problems: list[str] = []
    present = [card.found() for card in found.present]
    for level in options.power_levels_w:
        problems += [f"--power={level:g}: {each}" for each in judge.power_range(level, present)]
        if options.may_set_power and (over := judge.power_total(level, present, found.found(), rig.max_total_w)) is not None:
            problems.append(f"--power={level:g}: {over}")
    return problems
