"""``nvlink_topology``: the bridges as they are, against the declared pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_sglang.gpu import links
from pytest_sglang.gpu.processes import gpus_of
from pytest_sglang.gpu.readings import Missing
from pytest_sglang.judge import links as links_judge
from pytest_sglang.judge.hardware import Unreadable
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.server.processes import tree
from pytest_sglang.session.errors import NotChecked

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.hardware import Hardware


class NvlinkTopology:
    """NVLink of a deployment's cards, read anew at each access."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    @property
    def hardware(self) -> Hardware:
        """The cards; raises NotChecked where the rig file promises none."""
        if self._deployment.hardware is None:
            raise NotChecked("the rig file promises no GPUs (add [[gpus]] tables)")
        return self._deployment.hardware

    def read(self) -> links.Topology:
        """The topology as NVML has it now."""
        return links.read(self.hardware.nvml)

    @property
    def pairs(self) -> dict[tuple[int, int], int]:
        """Active links by pair of GPU indices."""
        return dict(self.read().pairs)

    @property
    def links_per_pair(self) -> int | None:
        """The number of links that every pair has; None = no pair, or they differ (then see ``pairs``)."""
        return self.read().links_per_pair

    @property
    def matrix(self) -> list[list[str]]:
        """The GPU-GPU cells of ``nvidia-smi topo -m``."""
        return [list(row) for row in self.read().matrix]

    def pairs_of(self, gpus: Sequence[int]) -> list[tuple[int, int]]:
        """Bridged pairs that lie wholly inside ``gpus``."""
        return list(self.read().pairs_of(gpus))

    def __str__(self) -> str:
        return str(self.read())

    def best_gpus(self, tp: int) -> tuple[int, ...]:
        """The ``tp`` GPUs with the most links among themselves. Raises ValueError for more GPUs than there are."""
        return self.read().best_gpus(tp)

    def judge(self) -> list[Judgement]:
        """Every promised pair up with all its links, the server's GPUs on such pairs."""
        rig, topology = self._deployment.rig, self.read()
        if rig.nvlink is None:
            raise NotChecked("the rig file declares no NVLink")
        found = self.hardware.found()
        judgements = [links_judge.nvlink(rig.nvlink, rig.gpus, found, topology.found(), unavailable=rig.unavailable)]
        serving = self._serving()
        if serving is not None:
            wanted = (
                [card.index for card in self.hardware.serving] if rig.server is not None and rig.server.gpus is not None else None
            )
            tp = rig.server.tp if rig.server is not None else None
            everything = [card.index for card in self.hardware.cards]
            judgements.append(
                links_judge.placement(serving, wanted, topology.found(), tp=tp, all_gpus=everything, unavailable=rig.unavailable)
            )
        return judgements

    def _serving(self) -> tuple[int, ...] | Unreadable | None:
        """Indices of the cards on which the server's processes work; None where no server runs that could be looked at."""
        if self._deployment.rig.server is None or self._deployment.rig.server.gpus is None:
            return None
        pid = self._deployment.controller.state().pid
        if pid is None:
            return Unreadable("the server's process cannot be seen", permission=True) if self._deployment.answers() else None
        cards = gpus_of(self.hardware.cards, {each.pid for each in tree(pid)})
        if isinstance(cards, Missing):
            return Unreadable(cards.reason, cards.permission)
        return tuple(card.index for card in cards)
