"""``gpu_power``: limits, energy windows, and a setting that is put back. Watts and joules per GPU: board power, not the wall."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.power import PowerControl
from pytest_sglang.gpu.readings import Missing, PowerError
from pytest_sglang.judge import hardware as judge
from pytest_sglang.judge import throttling
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.values import Finding
from pytest_sglang.session.errors import Inconclusive, NotChecked

if TYPE_CHECKING:
    from pytest_sglang.gpu.energy import EnergyWindow
    from pytest_sglang.gpu.readings import PowerLimits
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.hardware import Hardware
    from pytest_sglang.session.journal import Entry

TOLERANCE_W = 1.0
SETTLE_S = 2.0
"""Seconds between setting limits and looking at them: one that is lost at once (another tool resets it) shows itself by then."""


class GpuPower:
    """Power of the promised GPUs of a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._changed: list[tuple[Entry, Card, float]] = []
        self._level_w: float | None = None

    @property
    def hardware(self) -> Hardware:
        """The cards; raises NotChecked where the rig file promises none."""
        if self._deployment.hardware is None:
            raise NotChecked("the rig file promises no GPUs (add [[gpus]] tables)")
        return self._deployment.hardware

    @property
    def gpus(self) -> tuple[Card, ...]:
        """The promised cards that are present."""
        return self.hardware.present

    def limits(self) -> dict[str, PowerLimits]:
        """Requested, enforced, default, minimum and maximum power limit in watts, by UUID."""
        return {card.uuid: card.limits() for card in self.gpus}

    @contextmanager
    def window(self) -> Iterator[EnergyWindow]:
        """Energy of every promised GPU between enter and exit: ``window.energies`` maps UUID to joules, mean and peak watts."""
        from pytest_sglang.gpu.energy import EnergyWindow

        with EnergyWindow(self.gpus, self.hardware.context) as window:
            yield window

    @contextmanager
    def set(self, watts: float) -> Iterator[None]:
        """Every promised GPU at ``watts`` inside the block, as before behind it. Raises NotChecked without --sglang-set-power."""
        before, level_w = len(self._changed), self._level_w
        try:
            self.ensure(watts, strict=True)
            yield
        finally:
            # the level of before stands again, and is not set anew: one that was lost meanwhile must be seen, not mended
            self._level_w = level_w
            self._put_back(before)

    def ensure(self, watts: float, *, strict: bool = False) -> None:
        """Set the level on every promised GPU that is not at it; journalled before it is changed, put back at the end of the run.

        Once a level, and not again before each check: a limit that does not stay set must be seen, not mended.
        """
        deployment = self._deployment
        if deployment.hardware is None or (watts == self._level_w and not strict):
            return
        if not deployment.options.may_set_power:
            raise NotChecked("the power limit is not set without --sglang-set-power")
        self._refuse(watts)
        real = self.hardware.context.get("nvml") == "real"
        control = PowerControl(self.hardware.nvml, self.gpus) if real else PowerControl(self.hardware.nvml, self.gpus, None)
        off = [card for card in self.gpus if not _at(card, watts)]
        if off and (why := control.may_set()) is not None:
            raise Inconclusive(f"the power limit cannot be set: {why}", because="power-limit" if not strict else None)
        for card, before in self._as_they_are(off, strict):
            entry = deployment.journal.record("power_limit", card.uuid, before, watts, dict(self.hardware.context))
            self._changed.append((entry, card, before))
            try:
                control.set(card.uuid, watts)
            except PowerError as error:
                # the power-limit check reads back what stands and says so; a block that asked for the level must not go on
                if strict:
                    raise Inconclusive(str(error), because="power-limit") from None

        self._level_w = watts
        if off:
            time.sleep(SETTLE_S)

    def _as_they_are(self, cards: list[Card], strict: bool) -> list[tuple[Card, float]]:
        """Each card with its present limit. Raises Inconclusive where one cannot be read: what was not read cannot be put back."""
        read = [(card, card.limits().requested_w) for card in cards]
        found = [(card, watts) for card, watts in read if not isinstance(watts, Missing)]
        if len(found) < len(read):
            hidden = "; ".join(f"GPU {card.index}: {watts.reason}" for card, watts in read if isinstance(watts, Missing))
            raise Inconclusive(
                f"the power limit is not set: the present one cannot be read, so it could not be put back ({hidden})",
                because=None if strict else "power-limit",
            )
        return found

    def _refuse(self, watts: float) -> None:
        """Raise Inconclusive for a level that a card cannot take, or that asks the power supply for more than ``max_total_w``."""
        present = [card.found() for card in self.gpus]
        problems = judge.power_range(watts, present)
        over = judge.power_total(watts, present, self.hardware.found(), self._deployment.rig.max_total_w)
        if problems or over is not None:
            raise Inconclusive(f"not set: {'; '.join([*problems, *([over] if over is not None else [])])}", because="power-limit")

    def restore(self) -> None:
        """Put back every limit that this run has set, newest first, where it is still ours."""
        self._put_back(0)

    def _put_back(self, keep: int) -> None:
        from pytest_sglang.session.changes import undo_entry

        while len(self._changed) > keep:
            entry, card, _ = self._changed.pop()
            try:
                self._deployment.journal.resolve(entry.id, undo_entry(entry))
            except Exception as error:  # one lost card must not keep the others from being put back
                # the entry stays open: the guard tries once more, and pytest-sglang undo after it
                told = Finding("not-put-back", "warn", f"GPU {card.index}", str(error), "pytest-sglang undo")
                self._deployment.recorder.findings((told,))

    def require(self, level_w: float | None) -> None:
        """Raise Inconclusive where a serving card is not at the check's level: a rate at another level is no evidence."""
        if level_w is None or self._deployment.hardware is None:
            return
        for card in self.hardware.serving:
            enforced = card.limits().enforced_w
            if isinstance(enforced, Missing):
                raise Inconclusive(f"GPU {card.index}: its enforced power limit is {enforced}", because="power-limit")
            if abs(enforced - level_w) > TOLERANCE_W:
                raise Inconclusive(
                    f"GPU {card.index} enforces {enforced:g} W, not {level_w:g} W: a rate measured now says nothing about {level_w:g} W",
                    because="power-limit",
                )

    def judge_identity(self) -> Judgement:
        """Every promised GPU present and itself."""
        rig = self._deployment.rig
        unopened = {index: missing.reason for index, missing in self.hardware.nvml.unopened.items()}
        return judge.identity(rig.gpus, self.hardware.found(), unopened=unopened, unavailable=rig.unavailable)

    def judge_links_under_load(self) -> Judgement:
        """PCIe generation and width while the serving cards worked, and what PCIe and NVLink sent again."""
        from pytest_sglang.session import underload

        return underload.judged(self._deployment)

    def judge_health(self) -> Judgement:
        """Every promised GPU still answers, counted no memory error since the run began, has no memory row to remap."""
        from pytest_sglang.session import health

        return health.judge_health(self._deployment)

    def judge_kernel_log(self) -> Judgement:
        """No Xid and no other fault of the driver in the kernel log since the run began."""
        from pytest_sglang.session import health

        return health.judge_kernel_log(self._deployment)

    def judge_limit(self, watts: float | None) -> Judgement:
        """Requested = enforced = ``watts`` on every promised GPU, persistence mode on where it is promised."""
        if watts is None:
            raise NotChecked("no --power given: name the level that is meant (e.g. --power=250)")
        rig = self._deployment.rig
        return judge.power_limit(rig.gpus, self.hardware.found(), watts, unavailable=rig.unavailable)

    def judge_throttling(self, level_w: float | None) -> Judgement:
        """What limited the serving cards over the newest measurement at this level: the power cap may, heat and brakes may not."""
        worked = self._deployment.worked.get(level_w)
        if worked is None:
            raise Inconclusive("no load was put on the cards at this power level")
        rig = self._deployment.rig
        return throttling.throttling(worked, all_work=self.hardware.all_work, unavailable=rig.unavailable)


def _at(card: Card, watts: float) -> bool:
    requested = card.limits().requested_w
    return not isinstance(requested, Missing) and abs(requested - watts) <= TOLERANCE_W
