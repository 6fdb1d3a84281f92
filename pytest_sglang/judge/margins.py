"""What is compared, and from which size on a change of it is a loss. Why these sizes: docs/statistics.md."""

from __future__ import annotations

from pytest_sglang.judge.boots import ASSUMED_BOOT_SD
from pytest_sglang.record.values import Value


class Margin(Value, frozen=True, kw_only=True):
    """A quantity's margins as shares, and ``floor`` in its own unit: a smaller change is none, whatever its share.

    ``max_loss`` must be excluded before a comparison passes; a loss below ``min_loss`` is shown and not called, however certain.
    """

    name: str
    """In the samples of a measurement (``judge.samples``)."""
    title: str
    unit: str
    up: bool
    max_loss: float
    min_loss: float
    floor: float = 0.0
    assumed_sd: float = ASSUMED_BOOT_SD
    """Spread between boots (of the logarithm) where none is known."""
    primary: bool = False
    """What the rig is bought for: these share half of the alarms, all others the other half."""

    def losses(self, before: float) -> tuple[float, float]:
        """(max_loss, min_loss) at this value, with the floor."""
        floor = self.floor / before if before > 0 else 0.0
        return max(self.max_loss, floor), max(self.min_loss, floor / 2)


RATES: tuple[Margin, ...] = (
    Margin(name="decode_tok_s", title="decode", unit="tok/s", up=True, max_loss=0.03, min_loss=0.01, primary=True),
    Margin(name="end_to_end_tok_s", title="end to end", unit="tok/s", up=True, max_loss=0.03, min_loss=0.01, primary=True),
    Margin(name="aggregate_tok_s", title="all streams", unit="tok/s", up=True, max_loss=0.03, min_loss=0.01, primary=True),
    Margin(name="joules_per_token", title="energy per token", unit="J/token", up=False, max_loss=0.05, min_loss=0.02),
)
LATENCIES: tuple[Margin, ...] = (
    Margin(name="ttft_ms", title="TTFT median", unit="ms", up=False, max_loss=0.15, min_loss=0.05, floor=2.0, assumed_sd=0.05),
    Margin(name="ttft_p99_ms", title="TTFT p99", unit="ms", up=False, max_loss=0.25, min_loss=0.10, floor=5.0, assumed_sd=0.10),
    Margin(name="tpot_ms", title="TPOT median", unit="ms", up=False, max_loss=0.03, min_loss=0.01),
    Margin(name="tpot_p99_ms", title="TPOT p99", unit="ms", up=False, max_loss=0.10, min_loss=0.03, assumed_sd=0.05),
    Margin(name="itl_ms", title="ITL median", unit="ms", up=False, max_loss=0.05, min_loss=0.02, floor=0.1),
    Margin(name="itl_p99_ms", title="ITL p99", unit="ms", up=False, max_loss=0.20, min_loss=0.05, floor=0.5, assumed_sd=0.05),
)
READY = Margin(name="ready_s", title="ready after", unit="s", up=False, max_loss=0.15, min_loss=0.05, floor=2.0)
PHASE = Margin(name="phase", title="phase", unit="s", up=False, max_loss=0.25, min_loss=0.10, floor=3.0)


def weights(primary: list[bool]) -> list[float]:
    """Shares of the alarms: half for the primary quantities together, half for the others; all, where there is one kind only."""
    first = sum(primary)
    rest = len(primary) - first
    if not first or not rest:
        return [1.0 / len(primary)] * len(primary)
    return [0.5 / first if each else 0.5 / rest for each in primary]
