"""How the simulated server starts: the phases and log lines of a recorded 0.5.11, cold or warm by what is in its caches.

The long phases run in fast rig time. Every step has its moment in rig time, and is stamped with it, so that the machine's own
delays do not show up a hundredfold. The last two seconds before the port opens run in real time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pytest_sglang.simulator import crashes, furnish
from pytest_sglang.simulator.caches import Kernel, larger, recorded
from pytest_sglang.simulator.clock import RigClock
from pytest_sglang.simulator.config import Config
from pytest_sglang.simulator.log import Log, autotune_block
from pytest_sglang.simulator.state import HardwareState

WARM_READY_S = 80.0
COLD_READY_S = 1320.0
SPREAD = 0.03
"""Start-up times vary by up to this share."""
REAL_BEFORE_PORT_S = 2.0
WARM_UP_S = 0.9
"""From the open port to ready, in real time: one look at /model_info and a request of 8 tokens."""
EARLY_S, EARLY_RATE = 26.0, 8.0
"""Under the fault port-opens-early the port opens so much earlier, and the warm-up takes so much longer, at this rate of the clock."""

KV_TOKENS = 98_304
CONTEXT = 32_768
MAX_RUNNING = 48
BATCH_SIZES = (24, 16, 8, 4, 2, 1)
_COMPILED = {4: 0.45, 2: 0.3, 1: 0.25}
"""Batch sizes that torch.compile takes (--torch-compile-max-bs 4), and their shares of the work."""
_WEIGHTS_B, _SERVING_B = int(10.3 * 2**30), int(21.2 * 2**30)

# begin and end of the phases of a warm start in seconds since its launch
_ARGUMENTS_S, _TOKENIZER_S, _DISTRIBUTED_S, _WEIGHTS_S, _LOADED_S, _POOL_S, _CAPTURE_S, _CAPTURED_S, _SUMMARY_S = (
    11.0,
    11.6,
    24.0,
    27.0,
    42.5,
    43.1,
    44.5,
    73.5,
    75.0,
)
_PORT_S = WARM_READY_S - WARM_UP_S
_IN_CAPTURE = ("never-ready", "misleading-crash", "stopped")
_VENV = "/srv/venv/lib/python3.12/site-packages"


@dataclass(frozen=True)
class Work:
    """What a start has to compile: kernels and autotuned shapes that are missing, and new variants of known kernels."""

    kernels: tuple[Kernel, ...]
    shapes: tuple[str, ...]
    variants: tuple[Kernel, ...]
    share: float
    """Of a whole cold start's compilation, 0 to 1."""


class Startup:
    """One start; ``play()`` returns when it is time to open the port."""

    def __init__(self, config: Config, clock: RigClock, log: Log, state: HardwareState, args: dict[str, Any]) -> None:
        self._config, self._clock, self._log, self._state, self._args = config, clock, log, state, args
        self._caches = furnish.caches_of(config, 1)
        self._launched_s = clock.time()
        self._scale = 1.0
        self._before = 1.0
        """How much longer than usual the phases before the capture take; the others are scaled by ``_scale``."""
        self._late_s = 0.0
        self._stores = True
        self._silent = False

    def play(self, launched_s: float, number: int, noise: random.Random) -> None:
        """Start number ``number`` of the rig, whose process was made at rig time ``launched_s``."""
        self._caches = furnish.caches_of(self._config, number)
        work = self._work(number, noise)
        self._launched_s = launched_s

        def acts(fault: str) -> bool:
            return self._config.acts(fault, number)

        self._scale = self._before = 1.0 + noise.uniform(-SPREAD, SPREAD)
        if acts("random-timing"):
            self._before, self._scale = noise.uniform(0.55, 1.05), noise.uniform(0.6, 1.0)
        extra_s = work.share * (COLD_READY_S - WARM_READY_S) - (EARLY_S if acts("port-opens-early") else 0.0)
        port_s = self._moment(_PORT_S) + extra_s * self._scale
        self._clock.fast_until(port_s - REAL_BEFORE_PORT_S)
        self._begin()
        self._distributed()
        dies = crashes.out_of_memory if acts("dies-loading") else crashes.occupied if acts("unit-flaps") else None
        self._weights(dies)
        self._silent = acts("log-silent")
        self._capture(work, extra_s, next((fault for fault in _IN_CAPTURE if acts(fault)), None))
        self._late_s = extra_s
        self._finish()
        if acts("log-rotates"):
            self._clock.sleep_until(port_s - REAL_BEFORE_PORT_S / 2)
            crashes.rotate(self._config.log)
        self._clock.sleep_until(port_s)
        self._clock.real()
        self._log.at = None

    def _work(self, number: int, noise: random.Random) -> Work:
        caches, config = self._caches, self._config
        self._stores = not config.acts("cache-unused", number)
        kernels, shapes = (
            (caches.missing(), caches.untuned()) if self._stores else (list(caches.known), list(recorded()["autotuned"]))
        )
        if config.acts("cache-flags-changed", number):
            kernels += [kernel for kernel in larger(config.model) if not (caches.triton / kernel.key).exists()]
        share = min(1.0, (len(kernels) + len(shapes)) / caches.size())
        variants = [] if share == 1.0 else caches.variants(noise.randint(10, 30), noise)
        return Work(tuple(kernels), tuple(shapes), tuple(variants), share)

    def _moment(self, offset_s: float) -> float:
        before_s = min(offset_s, _CAPTURE_S)
        return self._launched_s + before_s * self._before + (offset_s - before_s + self._late_s) * self._scale

    def _at(self, offset_s: float) -> None:
        """Wait for the moment ``offset_s`` of a warm start (later by what was compiled) and stamp what follows with it."""
        moment_s = self._moment(offset_s)
        self._clock.sleep_until(moment_s)
        self._log.at = moment_s if self._clock.rate != 1.0 else None

    # --- phases ------------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        log = self._log
        self._at(_ARGUMENTS_S - 4)
        log.raw(
            f"{_VENV}/sglang/launch_server.py:54: UserWarning: 'python -m sglang.launch_server' is still supported, "
            "but 'sglang serve' is the recommended entrypoint.\n  Example: sglang serve --model-path <model> [options]\n"
            "  warnings.warn(\n"
        )
        self._at(_ARGUMENTS_S)
        log.line("server_args=ServerArgs(" + ", ".join(f"{key}={value!r}" for key, value in self._args.items()) + ")")
        self._at(_TOKENIZER_S)
        log.line("Using default HuggingFace chat template with detected content format: string")

    def _distributed(self) -> None:
        log = self._log
        self._at(_DISTRIBUTED_S)
        log.all_ranks("Init torch distributed begin.")
        self._at(_DISTRIBUTED_S + 2.2)
        log.line("sglang is using nccl==2.28.9", 0)
        log.all_ranks(f"Init torch distributed ends. elapsed={2.2 * self._scale:.2f} s, mem usage=0.21 GB")
        if log.ranks > 2 and not self._all_linked():
            log.all_ranks(
                "CustomAllreduce is disabled because it's not supported on more than two PCIe-only GPUs. "
                "To silence this warning, specify disable_custom_all_reduce=True explicitly."
            )

    def _all_linked(self) -> bool:
        """NVLink joins every two of the serving cards."""
        ailments = self._config.ailments
        return all(ailments.linked(a, b) for a, b in combinations(self._config.hardware.serving, 2))

    def _weights(self, dies: Callable[[Log, RigClock], None] | None) -> None:
        log, shards = self._log, 9
        self._at(_WEIGHTS_S)
        log.all_ranks("Load weight begin. avail mem=23.05 GB")
        self._state.set_load(0.1, _WEIGHTS_B // 4)
        step_s = (_LOADED_S - 0.6 - _WEIGHTS_S) / shards
        for done in range(shards + 1):
            self._at(_WEIGHTS_S + 0.3 + done * step_s)
            if dies is not None and done == 4:
                dies(log, self._clock)
            log.bar("Loading safetensors checkpoint shards", done, shards, done * step_s, step_s, "Completed")
        log.raw("\n")
        self._at(_LOADED_S)
        elapsed_s = (_LOADED_S - _WEIGHTS_S) * self._scale
        log.all_ranks(
            f"Load weight end. elapsed={elapsed_s:.2f} s, type=LlamaForCausalLM, quant=awq_marlin, "
            "avail mem=12.75 GB, mem usage=10.30 GB."
        )
        self._state.set_load(0.1, _WEIGHTS_B)
        self._at(_POOL_S)
        log.line("Using KV cache dtype: torch.float16", 0)
        log.all_ranks(f"KV Cache is allocated. #tokens: {KV_TOKENS}, K size: 3.75 GB, V size: 3.75 GB")
        log.all_ranks("Memory pool end. avail mem=4.91 GB")

    def _capture(self, work: Work, extra_s: float, fault: str | None) -> None:
        log, total = self._log, len(BATCH_SIZES)
        self._at(_CAPTURE_S)
        log.all_ranks("Capture cuda graph begin. This can take up to several minutes. avail mem=4.82 GB")
        log.line(f"Capture cuda graph bs {sorted(BATCH_SIZES)}", 0)
        self._state.set_load(0.0 if fault is not None else 0.35, _SERVING_B)
        self._bar("", 0, 0, 0)
        if fault is not None:
            self._bar(f"Capturing batches (bs={BATCH_SIZES[0]} avail_mem=4.82 GB)", 0, 0, 0)
            self._fails(fault)
        whole_s, plain_s, elapsed_s = _CAPTURED_S - _CAPTURE_S + extra_s, 0.8, 0.0
        compile_s = whole_s - 0.3 - plain_s * (total - len(_COMPILED))
        pending = self._jobs(work)
        for done, size in enumerate(BATCH_SIZES):
            label = f"Capturing batches (bs={size} avail_mem={4.82 - 0.02 * done:.2f} GB)"
            self._bar(label, done, elapsed_s, elapsed_s / max(done, 1))
            took_s = compile_s * _COMPILED[size] if size in _COMPILED else plain_s
            self._compile(pending, size, elapsed_s, took_s)
            elapsed_s += took_s
            self._at(_CAPTURE_S + elapsed_s)
            self._bar(label, done + 1, elapsed_s, elapsed_s / (done + 1))
        log.raw("\n")
        self._at(_CAPTURE_S + whole_s)
        if log.ranks > 1 and self._all_linked():
            log.all_ranks(f"Registering {390 * total} cuda graph addresses")
        log.all_ranks(f"Capture cuda graph end. Time elapsed: {whole_s * self._scale:.2f} s. mem usage=0.31 GB. avail mem=4.51 GB.")
        self._state.set_load(0.0, _SERVING_B)

    def _fails(self, fault: str) -> None:
        if fault == "misleading-crash":
            crashes.misleading(self._log, self._clock)
        elif fault == "stopped":
            crashes.stop(self._clock)
        else:
            crashes.hang(self._clock)

    def _bar(self, label: str, done: int, elapsed_s: float, per_item_s: float) -> None:
        if not self._silent:
            self._log.bar(label, done, len(BATCH_SIZES), elapsed_s, per_item_s)

    def _jobs(self, work: Work) -> list[Callable[[], None]]:
        """What has to be compiled, in order: shapes between kernels, then the new variants."""
        jobs: list[Callable[[], None]] = []
        every = max(1, len(work.kernels) // max(1, len(work.shapes)))
        shapes = list(work.shapes)
        for number, kernel in enumerate(work.kernels):
            if number % every == 0 and shapes:
                jobs.append(self._tune(shapes.pop(0)))
            jobs.append(lambda kernel=kernel: self._caches.compile(kernel))  # type: ignore[misc]
        jobs += [self._tune(shape) for shape in shapes]
        jobs += [lambda kernel=kernel: self._caches.compile(kernel) for kernel in work.variants]  # type: ignore[misc]
        return jobs

    def _tune(self, shape: str) -> Callable[[], None]:
        def tune() -> None:
            for rank in range(0 if self._silent else self._log.ranks):
                choices = ["triton_mm_8", "triton_mm_4", "triton_mm_17", "mm", *(f"triton_mm_{9 + rank + n}" for n in range(6))]
                self._log.raw(autotune_block(shape, choices, 4.2 + 0.11 * rank, 0.31 + 0.04 * rank))
            if self._stores:
                self._caches.tuned([shape])

        return tune

    def _compile(self, pending: list[Callable[[], None]], size: int, begin_s: float, took_s: float) -> None:
        """The work that belongs to one batch size, spread evenly over its time."""
        if size not in _COMPILED:
            return
        if size == max(_COMPILED) and self._stores:
            self._caches.write_inductor()
        left = sum(share for each, share in _COMPILED.items() if each <= size)
        number = round(len(pending) * _COMPILED[size] / left)
        for done in range(number):
            self._at(_CAPTURE_S + begin_s + took_s * (done + 0.5) / number)
            pending.pop(0)()

    def _finish(self) -> None:
        log = self._log
        self._at(_CAPTURED_S + 0.3)
        log.all_ranks("Disable piecewise CUDA graph because --disable-piecewise-cuda-graph is set")
        self._at(_SUMMARY_S)
        log.line(
            f"max_total_num_tokens={KV_TOKENS}, chunked_prefill_size={self._args['chunked_prefill_size']}, "
            f"max_prefill_tokens={self._args['max_prefill_tokens']}, max_running_requests={MAX_RUNNING}, context_len={CONTEXT}, "
            "available_gpu_mem=4.51 GB",
            0,
        )


def write_earlier_start(log_path: Path, config: Config, args: dict[str, Any], ended_s: float) -> None:
    """The log of a cold start long ago, shortened to its stages: logs hold many starts, and only the last one counts."""
    import time

    begin_s = ended_s - COLD_READY_S
    marks = [
        (_ARGUMENTS_S, None, "server_args=ServerArgs(" + ", ".join(f"{key}={value!r}" for key, value in args.items()) + ")"),
        (_DISTRIBUTED_S, 0, "Init torch distributed begin."),
        (_DISTRIBUTED_S + 2.2, 0, "Init torch distributed ends. elapsed=2.20 s, mem usage=0.21 GB"),
        (_WEIGHTS_S, 0, "Load weight begin. avail mem=23.05 GB"),
        (
            _LOADED_S,
            0,
            "Load weight end. elapsed=15.50 s, type=LlamaForCausalLM, quant=awq_marlin, avail mem=12.75 GB, mem usage=10.30 GB.",
        ),
        (_POOL_S, 0, f"KV Cache is allocated. #tokens: {KV_TOKENS}, K size: 3.75 GB, V size: 3.75 GB"),
        (_POOL_S, 0, "Memory pool end. avail mem=4.91 GB"),
        (_CAPTURE_S, 0, "Capture cuda graph begin. This can take up to several minutes. avail mem=4.82 GB"),
        (
            -6.5,
            0,
            f"Capture cuda graph end. Time elapsed: {COLD_READY_S - _CAPTURE_S - 6.5:.2f} s. mem usage=0.31 GB. avail mem=4.51 GB.",
        ),
        (-0.9, None, "INFO:     Started server process [2143]"),
        (-0.9, None, "INFO:     Waiting for application startup."),
        (-0.9, None, "INFO:     Application startup complete."),
        (-0.9, None, f"INFO:     Uvicorn running on {config.url} (Press CTRL+C to quit)"),
        (-0.1, None, 'INFO:     127.0.0.1:40312 - "POST /generate HTTP/1.1" 200 OK'),
        (0.0, None, "The server is fired up and ready to roll!"),
        (86_400.0, None, "SIGTERM received. signum=None frame=None. Draining requests and shutting down..."),
        (86_401.0, None, "Gracefully exiting... Remaining number of requests 0. Remaining requests remaining_rids=[]."),
    ]
    lines = []
    for number, (offset_s, rank, text) in enumerate(marks):
        moment_s = begin_s + offset_s if offset_s > 0 and number < 8 else ended_s + offset_s
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment_s))
        lines.append(f"[{stamp}{'' if rank is None else f' TP{rank}'}] {text}\n")
        if text.startswith("Capture cuda graph begin"):
            lines.append(autotune_block("mm(4x8192, 8192x2560)", ["triton_mm_8", "triton_mm_4", "mm"], 4.2, 0.31))
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log_path.write_text("".join(lines), encoding="utf-8")
