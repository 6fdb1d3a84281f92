"""The checks of the acceptance suite: id, place in the order, what must hold first, and what in the rig file promises it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_sglang.rig.model import Rig, ThroughputRow

STAGES: tuple[str, ...] = (
    "identity",
    "power",
    "links",
    "server",
    "findings",
    "measure",
    "restart",
    "cold",
    "answers",
    "health",
    "baseline",
)
"""The fixed order. Nothing is restarted before everything else has been measured: the server may not come back.

Last of all: what happened to the cards meanwhile, and the comparison with the baseline.
"""


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """One check. ``after``: checks that must have passed, else this one is inconclusive because of them."""

    id: str
    stage: str
    after: tuple[str, ...] = ()
    per_power: bool = False
    min_level: int = 1
    promised: Callable[[Rig], bool] = lambda rig: True
    uses_server: bool = False

    @property
    def stage_index(self) -> int:
        """Place of its stage in the order."""
        return STAGES.index(self.stage)


BASELINE = "baseline"
"""Id of the check that ``--sglang-baseline=compare`` asks for."""
_SERVER = ("server-identity", "ready")


def _rates(row: ThroughputRow) -> bool:
    return any(each is not None for each in (row.min_tok_s, row.max_ttft_s, row.max_itl_p99_s))


def _placed(rig: Rig) -> bool:
    """Something about where the server runs is promised."""
    server = rig.server
    return server is not None and bool(rig.gpus) and (server.gpus is not None or bool(server.exclusive))


def _links_under_load(rig: Rig) -> bool:
    """A server to make load with, and links that are promised."""
    pcie = any(each.pcie_gen is not None or each.pcie_width is not None for each in rig.gpus)
    return rig.server is not None and bool(rig.gpus) and (pcie or rig.declares_nvlink)


def _starts(rig: Rig) -> bool:
    return rig.server is not None and rig.start is not None


STANDARD: dict[str, CheckSpec] = {
    spec.id: spec
    for spec in (
        CheckSpec("gpu-identity", "identity", promised=lambda rig: bool(rig.gpus)),
        CheckSpec("power-limit", "power", after=("gpu-identity",), per_power=True, promised=lambda rig: bool(rig.gpus)),
        CheckSpec("nvlink", "links", after=("gpu-identity",), promised=lambda rig: rig.declares_nvlink),
        CheckSpec("server-identity", "server", promised=lambda rig: rig.server is not None, uses_server=True),
        CheckSpec("ready", "server", after=("server-identity",), promised=lambda rig: rig.server is not None, uses_server=True),
        CheckSpec("placement", "server", after=("gpu-identity", "server-identity"), promised=_placed, uses_server=True),
        CheckSpec(
            "findings", "findings", after=("server-identity",), promised=lambda rig: rig.server is not None, uses_server=True
        ),
        CheckSpec(
            "decode-throughput",
            "measure",
            after=(*_SERVER, "power-limit"),
            per_power=True,
            min_level=2,
            promised=lambda rig: rig.server is not None and any(_rates(row) for row in rig.throughput),
            uses_server=True,
        ),
        CheckSpec(
            "energy-per-token",
            "measure",
            after=(*_SERVER, "power-limit", "placement"),
            per_power=True,
            min_level=2,
            promised=lambda rig: rig.server is not None and any(row.max_j_per_token is not None for row in rig.throughput),
            uses_server=True,
        ),
        CheckSpec(
            "throttling",
            "measure",
            after=(*_SERVER, "power-limit", "placement"),
            per_power=True,
            min_level=2,
            promised=lambda rig: (
                rig.server is not None and bool(rig.gpus) and any(row.power_w is not None for row in rig.throughput)
            ),
            uses_server=True,
        ),
        CheckSpec(
            "gain",
            "measure",
            after=(*_SERVER, "power-limit"),
            per_power=True,
            min_level=2,
            promised=lambda rig: rig.server is not None and rig.gain is not None,
            uses_server=True,
        ),
        CheckSpec("links-under-load", "measure", after=_SERVER, min_level=2, promised=_links_under_load, uses_server=True),
        CheckSpec(
            "warm-restart",
            "restart",
            after=("gpu-identity", "power-limit", *_SERVER),
            promised=lambda rig: _starts(rig) and rig.start is not None and rig.start.warm_s is not None,
            uses_server=True,
        ),
        CheckSpec(
            "cold-start",
            "cold",
            after=("gpu-identity", "power-limit", *_SERVER),
            promised=lambda rig: _starts(rig) and rig.start is not None and rig.start.cold_s is not None,
            uses_server=True,
        ),
        # asked before and after the restarts, judged behind them
        CheckSpec(
            "answers",
            "answers",
            after=_SERVER,
            min_level=2,
            promised=lambda rig: rig.server is not None and rig.answers is not None,
            uses_server=True,
        ),
        CheckSpec("gpu-health", "health", promised=lambda rig: bool(rig.gpus)),
        CheckSpec("kernel-log", "health", promised=lambda rig: bool(rig.gpus)),
        # asked for by --sglang-baseline=compare, not by the rig file
        CheckSpec(BASELINE, "baseline", promised=lambda rig: False),
    )
}


def promised(rig: Rig) -> tuple[str, ...]:
    """Ids of the standard checks that this rig file promises; what it does not promise is not checked."""
    return tuple(spec.id for spec in STANDARD.values() if spec.promised(rig))
