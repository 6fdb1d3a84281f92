"""The promise, typed. ``pytest_sglang.rig.load`` makes these from rig.toml; numbers are SI, unit in the name.

A part that is None is not promised, and what is not promised is not checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pytest_sglang.record.values import Value

Quantity = Literal["decode", "end_to_end"]


class GpuPromise(Value, frozen=True, kw_only=True):
    """One GPU, identified by exactly one of index, UUID, PCI bus id."""

    index: int | None = None
    uuid: str | None = None
    pci: str | None = None
    name: str | None = None
    persistence: bool | None = None
    pcie_gen: int | None = None
    pcie_width: int | None = None

    @property
    def label(self) -> str:
        """How messages name it: ``GPU 3``, its UUID, or its bus id."""
        return f"GPU {self.index}" if self.index is not None else self.uuid or self.pci or "GPU"


class NvlinkPromise(Value, frozen=True, kw_only=True):
    """Pairs of GPUs (positions in ``[[gpus]]``, so their index where they are given by index) and links per pair."""

    pairs: tuple[tuple[int, int], ...]
    links: int | None = None


class ServerPromise(Value, frozen=True, kw_only=True):
    """The deployment. ``tp`` is the tensor parallel size; ``gpus`` the positions in ``[[gpus]]`` on which it runs."""

    url: str
    model: str | None = None
    served_name: str | None = None
    tp: int | None = None
    gpus: tuple[int, ...] | None = None
    exclusive: bool | None = None
    """Nobody else computes on the server's GPUs; a display server does not count."""
    torch_compile: bool | None = None
    api_key_env: str | None = None
    log: str | None = None
    systemd: str | None = None
    command: tuple[str, ...] | None = None
    env: dict[str, str] = {}
    cwd: str | None = None
    container: str | None = None


class StartPromise(Value, frozen=True, kw_only=True):
    """Budgets of a start and of its phases (by id) in seconds (rig time), and what it may compile. None = not promised."""

    cold_s: float | None = None
    warm_s: float | None = None
    silence_s: float = 300.0
    phases_s: dict[str, float] = {}
    first_request_ratio: float | None = None
    max_autotune_runs: int | None = None
    max_new_kernels: int | None = None
    max_new_graphs: int | None = None
    max_new_variants: int | None = None
    warm_capture_share: float | None = None


class ThroughputRow(Value, frozen=True, kw_only=True):
    """One promised rate. ``nvlink`` is the *declared* state that it belongs to; ``power_w`` None = whatever the power."""

    power_w: float | None
    nvlink: bool | None
    streams: int
    quantity: Quantity
    min_tok_s: float | None = None
    target_tok_s: float | None = None
    max_ttft_s: float | None = None
    max_itl_p99_s: float | None = None
    max_j_per_token: float | None = None


class GainPromise(Value, frozen=True, kw_only=True):
    """Relative promises in percent, each against a saved run (folder or run.json) in which just that one thing differs."""

    compile_gain_pct: float | None = None
    compile_baseline: str | None = None
    nvlink_gain_pct: float | None = None
    nvlink_baseline: str | None = None


APIS = ("completions", "chat", "native")
PROMPTS = ("unique", "cached", "random-ids")


class Workload(Value, frozen=True, kw_only=True):
    """How it is measured. ``tolerance``: an undecided median this close to the limit (a share) is marginal, not inconclusive.

    ``api``: the route that requests take. ``prompts``: real text that begins differently each time, the same text each time (what a prefix
    cache makes of it), or random token ids.
    """

    prompt_tokens: int = 64
    output_tokens: int = 256
    streams: int = 1
    rounds: int = 5
    max_rounds: int = 30
    warmups: int = 1
    soak_s: float = 0.0
    confidence: float = 0.99
    tolerance: float = 0.02
    api: Literal["completions", "chat", "native"] = "completions"
    prompts: Literal["unique", "cached", "random-ids"] = "unique"


class Expectation(Value, frozen=True, kw_only=True):
    """What must stand in the greedy continuation of a prompt, upper or lower case."""

    prompt: str
    contains: str


class AnswersPromise(Value, frozen=True, kw_only=True):
    """Answers stay the same over starts. ``text``: they are text, not a few tokens over and over nor broken characters."""

    expect: tuple[Expectation, ...] = ()
    text: bool = False


class Rig(Value, frozen=True, kw_only=True):
    """A rig file: everything that is promised of one rig."""

    name: str
    path: Path
    max_total_w: float | None = None
    unavailable: frozenset[str] = frozenset()
    gpus: tuple[GpuPromise, ...] = ()
    nvlink: NvlinkPromise | None = None
    server: ServerPromise | None = None
    start: StartPromise | None = None
    throughput: tuple[ThroughputRow, ...] = ()
    gain: GainPromise | None = None
    answers: AnswersPromise | None = None
    workload: Workload = Workload()

    @property
    def declares_nvlink(self) -> bool:
        """The declared NVLink state, which chooses the throughput row: a dead bridge never lowers a limit."""
        return self.nvlink is not None and bool(self.nvlink.pairs)

    def rows(self, power_w: float | None) -> tuple[ThroughputRow, ...]:
        """Every row that is promised at this power level for the declared NVLink state; a row of this level hides a general one."""
        found: dict[tuple[int, str], ThroughputRow] = {}
        for row in self.throughput:
            if row.nvlink is not None and row.nvlink != self.declares_nvlink:
                continue
            if row.power_w is None or (power_w is not None and abs(row.power_w - power_w) <= 1.0):
                key = (row.streams, row.quantity)
                if key not in found or found[key].power_w is None:
                    found[key] = row
        return tuple(found.values())

    def row(self, power_w: float | None, streams: int = 1, quantity: Quantity | None = None) -> ThroughputRow | None:
        """The promised row for this power level and the declared NVLink state; None = "not promised", never invented."""
        for row in self.throughput:
            if row.streams != streams or (quantity is not None and row.quantity != quantity):
                continue
            if row.nvlink is not None and row.nvlink != self.declares_nvlink:
                continue
            if row.power_w is None or (power_w is not None and abs(row.power_w - power_w) <= 1.0):
                return row
        return None
