"""The simulated server's log, in the forms of a recorded 0.5.11: stamps are rig time, local zone, whole seconds."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable

from pytest_sglang.simulator.clock import RigClock


class Log:
    """Writes to standard error (and access lines to standard output), each line by one write, as several ranks do."""

    def __init__(self, clock: RigClock, ranks: int) -> None:
        self.clock, self.ranks = clock, ranks
        self.at: float | None = None
        """Rig time of the step that is being played; None = now."""

    def stamp(self) -> str:
        """The time as SGLang prints it: whole seconds, thousandths too with SGLANG_LOG_MS=1."""
        moment_s = self.clock.time() if self.at is None else self.at
        thousandths = f".{int(moment_s * 1000) % 1000:03d}" if os.environ.get("SGLANG_LOG_MS") == "1" else ""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment_s)) + thousandths

    def line(self, text: str, rank: int | None = None) -> None:
        """A line of the main process, or of the scheduler of one rank."""
        words = f" TP{rank}" if rank is not None and self.ranks > 1 else ""
        self.raw(f"[{self.stamp()}{words}] {text}\n")

    def all_ranks(self, text: str) -> None:
        """The same line from every rank."""
        for rank in range(self.ranks):
            self.line(text, rank)

    def raw(self, text: str) -> None:
        """Text without a prefix: bars, tracebacks, autotuning."""
        os.write(2, text.encode("utf-8", "replace"))

    def bar(self, label: str, done: int, total: int, elapsed_s: float, per_item_s: float, word: str = "") -> None:
        """One state of a tqdm bar, led by a carriage return. ``word`` stands behind the percentage ("Completed")."""
        share = done / total
        eighths = int(share * 80)
        blocks = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
        left_s = per_item_s * (total - done)
        timing = f"{_clock(elapsed_s)}<{_clock(left_s)}, {_speed(per_item_s)}" if done else "00:00<?, ?it/s"
        progress = f"{word} | " if word else f"|{blocks:<10}| "
        self.raw(f"\r{label + ': ' if label else ''}{100 * share:3.0f}%{' ' if word else ''}{progress}{done}/{total} [{timing}]")


class RigFormatter(logging.Formatter):
    """uvicorn's own lines as SGLang shows them: ``[stamp] INFO:     text``."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        level = f"{record.levelname}:"
        return f"[{self._log.stamp()}] {level:<9} {record.getMessage()}"


class AccessFormatter(RigFormatter):
    """uvicorn's access lines: ``127.0.0.1:36284 - "POST /generate HTTP/1.1" 200 OK``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        from http import HTTPStatus

        client, method, path, version, status = record.args  # type: ignore[misc]
        try:
            phrase = HTTPStatus(int(str(status))).phrase
        except ValueError:
            phrase = ""
        return f'[{self._log.stamp()}] INFO:     {client} - "{method} {path} HTTP/{version}" {status} {phrase}'.rstrip()


def set_up(log: Log) -> None:
    """Give uvicorn's loggers their handlers: life-cycle to standard error, access lines to standard output."""
    import sys

    for name, stream, formatter in (
        ("uvicorn.error", sys.stderr, RigFormatter(log)),
        ("uvicorn.access", sys.stdout, AccessFormatter(log)),
    ):
        logger = logging.getLogger(name)
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def autotune_block(shape: str, choices: Iterable[str], benchmark_s: float, precompile_s: float) -> str:
    """What Inductor prints for one tuned shape."""
    m, _, rest = shape.removeprefix("mm(").removesuffix(")").partition("x")
    k, _, _ = rest.partition(",")
    best = (
        "ACC_TYPE='tl.float32', ALLOW_TF32=False, BLOCK_K=128, BLOCK_M=16, BLOCK_N=64, EVEN_K=True, GROUP_M=8, "
        "USE_FAST_ACCUM=False, num_stages=5, num_warps=4"
    )
    stats = {
        "num_choices": 19,
        "num_triton_choices": 18,
        "best_kernel": "triton_mm_8",
        "best_kernel_desc": best,
        "best_time": 0.02860799990594387,
        "best_triton_pos": 0,
    }
    lines = [
        "Autotune Choices Stats:",
        json.dumps(stats),
        f"AUTOTUNE {shape}",
        f"strides: [{k}, 1], [1, {k}]",
        "dtypes: torch.float16, torch.float16",
    ]
    for number, choice in enumerate(choices):
        time_ms = 0.0286 * (1 + 0.06 * number) * (1 + int(m) / 100)
        lines.append(f"  {choice} {time_ms:.4f} ms {100 / (1 + 0.06 * number):.1f}% {'' if choice == 'mm' else best}")
    took = f"{benchmark_s:.4f} seconds and {precompile_s:.4f} seconds precompiling for 19 choices"
    lines.append(f"SingleProcess AUTOTUNE benchmarking takes {took}")
    return "\n".join(lines) + "\n"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"


def _speed(per_item_s: float) -> str:
    return f"{per_item_s:5.2f}s/it" if per_item_s > 1 else f"{1 / max(per_item_s, 1e-3):5.2f}it/s"
