"""The load generators that are measured, how each is called, and its own report as common figures (ms, tokens a second)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OURS, BARE, RUST, PYTHON = "pytest-sglang", "bare sockets", "sglang, Rust client", "sglang, Python client"

ELSEWHERE = [
    ("evalscope 1.14.1", "299 / 70", "190 / 21", "9.6"),
    ("guidellm 0.8.1", "431 / 70", "per-request means only", "29"),
    ("aiperf 0.13.0", "2,056 / 70", "112 / 21", "22"),
]
"""Not run here (they pull gigabytes): TTFT p99 and ITL p99 in ms, said / true, and CPU s for 102k tokens, from a study of November 2026
with the same scenario and another server."""


@dataclass(frozen=True)
class Load:
    """What a client is asked to do."""

    url: str
    streams: int
    requests: int
    tokens: int
    tokenizer: Path


@dataclass(frozen=True)
class Peer:
    """One client: its command line for a load (``output``: its own report), and what that report says."""

    name: str
    command: Callable[[Load, Path], list[str]]
    figures: Callable[[Path], dict[str, Any]]
    environment: dict[str, str]


def _own(script: str) -> Callable[[Load, Path], list[str]]:
    def command(load: Load, output: Path) -> list[str]:
        asked = ["--streams", str(load.streams), "--requests", str(load.requests), "--tokens", str(load.tokens)]
        return [sys.executable, str(HERE / script), "--url", load.url, *asked, "--output", str(output)]

    return command


def _sglang(python: Path, *head: str) -> Callable[[Load, Path], list[str]]:
    def command(load: Load, output: Path) -> list[str]:
        return [
            *(str(python), *head, "--backend", "sglang-oai-chat", "--base-url", load.url, "--model", "truth"),
            *("--tokenizer", str(load.tokenizer), "--dataset-name", "random-ids", "--num-prompts", str(load.requests)),
            *("--random-input-len", "32", "--random-output-len", str(load.tokens), "--random-range-ratio", "1.0"),
            *("--max-concurrency", str(load.streams), "--output-file", str(output), "--disable-tqdm"),
        ]

    return command


def _own_report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _sglang_report(path: Path) -> dict[str, Any]:
    said = json.loads(path.read_text().strip().splitlines()[-1])

    def figures(name: str) -> dict[str, float]:
        return {"mean": said[f"mean_{name}_ms"], "p50": said[f"median_{name}_ms"], "p99": said[f"p99_{name}_ms"]}

    return {
        "requests": said["completed"],
        "tokens": said["total_output_tokens"],
        "tok_s": said["output_throughput"],
        "ttft_ms": figures("ttft"),
        "itl_ms": figures("itl"),
    }


def peers(folder: Path) -> list[Peer]:
    """Those that can run here. ``folder``: where ``peers.sh`` put sglang's."""
    found = [Peer(OURS, _own("client.py"), _own_report, {}), Peer(BARE, _own("bare.py"), _own_report, {})]
    python = folder / "venv" / "bin" / "python"
    if python.exists():
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
        environment = {**quiet, "PYTHONPATH": os.fspath(folder / "shim")}
        found.append(Peer(RUST, _sglang(python, str(HERE / "rust.py")), _sglang_report, environment))
        found.append(Peer(PYTHON, _sglang(python, "-m", "sglang.bench_serving"), _sglang_report, environment))
    return found
