"""The checks of the acceptance suite: id, place in the order, what must hold first, and what in the rig file promises it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_sglang.rig.model import Rig, ThroughputRow

STAGES: tuple[str, ...] = ("identity", "power", "links", "server", "findings", "measure", "restart", "cold", "baseline")
"""The fixed order. Nothing is restarted before everything else has been measured: the server may not come back."""


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
            after=(*_SERVER, "power-limit"),
            per_power=True,
            min_level=2,
            promised=lambda rig: rig.server is not None and any(row.max_j_per_token is not None for row in rig.throughput),
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
        # asked for by --sglang-baseline=compare, not by the rig file
        CheckSpec(BASELINE, "baseline", promised=lambda rig: False),
    )
}


def promised(rig: Rig) -> tuple[str, ...]:
    """Ids of the standard checks that this rig file promises; what it does not promise is not checked."""
    return tuple(spec.id for spec in STANDARD.values() if spec.promised(rig))
