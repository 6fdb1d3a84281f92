"""``nvlink_topology``: the bridges as they are against the declared pairs, and the server's GPUs against both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_sglang.gpu import links, processes
from pytest_sglang.gpu.readings import Missing
from pytest_sglang.judge import links as links_judge
from pytest_sglang.judge import placement
from pytest_sglang.judge.hardware import Unreadable
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.server import allreduce, log
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

    def judge(self) -> Judgement:
        """Every promised pair up with all its links, usable by programs."""
        rig = self._deployment.rig
        if rig.nvlink is None:
            raise NotChecked("the rig file declares no NVLink")
        found = self.hardware.found()
        return links_judge.nvlink(rig.nvlink, rig.gpus, found, self.read().found(), unavailable=rig.unavailable)

    def judge_placement(self) -> Judgement:
        """The server runs on its promised GPUs, each tensor parallel group on joined ones, custom all-reduce as they let expect."""
        deployment, rig = self._deployment, self._deployment.rig
        if rig.server is None:
            raise NotChecked("the rig file promises no server (add a [server] table)")
        pids, serving = self._serving()
        if isinstance(serving, Unreadable) and "placement" in rig.unavailable:
            raise NotChecked(f"on which GPUs the server runs cannot be read ({serving.reason}); waived in the rig file")
        cards = self.hardware.cards
        here = set(serving) if not isinstance(serving, Unreadable) else {card.index for card in self.hardware.serving}
        strangers = processes.foreign([card for card in cards if card.index in here], pids) if pids else ()
        return placement.placement(
            serving,
            [card.index for card in self.hardware.serving] if rig.server.gpus is not None else None,
            self.read().found(),
            tp=rig.server.tp if rig.server.tp is not None else deployment.server.identity().tp,
            all_gpus=[card.index for card in cards],
            all_reduce=self._all_reduce(),
            strangers=strangers,
            exclusive=bool(rig.server.exclusive),
        )

    def serving(self) -> tuple[int, ...] | Unreadable:
        """Indices of the cards on which the server's processes work. Raises GpuLost."""
        return self._serving()[1]

    def _serving(self) -> tuple[set[int], tuple[int, ...] | Unreadable]:
        """The server's process ids, and the indices of the cards on which they work."""
        pid = self._deployment.controller.state().pid
        if pid is None:
            return set(), Unreadable("the server's process cannot be seen", permission=True)
        pids = {each.pid for each in tree(pid)}
        found = processes.gpus_of(self.hardware.cards, pids)
        if isinstance(found, Missing):
            return pids, Unreadable(found.reason, found.permission)
        return pids, tuple(card.index for card in found)

    def _all_reduce(self) -> placement.AllReduce:
        """What the server says of custom all-reduce: its arguments, and the log of its newest start."""
        info = self._deployment.server.info
        lines = log.split(self._deployment.log.read())
        begun = log.starts(lines)
        newest = begun[-1] if begun else []
        version = info.get("version")
        state, detail = allreduce.read(newest, version)
        return placement.AllReduce(
            state=state,
            detail=detail,
            would_tell=allreduce.would_tell(version, newest),
            by_flag=info.get("disable_custom_all_reduce") is True,
        )
