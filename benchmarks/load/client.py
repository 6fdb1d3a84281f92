"""The product's client as a round uses it, in a process of its own: connect, send, measure; figures as JSON into ``--output``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from pytest_sglang.load.client import Client, Prompt, Target


def main() -> None:
    """Run, then write down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    prompts = [Prompt(text=f"{number} " + "hello " * 32, tokens=33, exact=False) for number in range(options.requests)]
    with Client(Target(url=options.url, api="chat", model="truth"), options.streams) as client:
        client.connect()
        began_s = time.perf_counter()
        exchanges = client.run(prompts, options.tokens, timeout_s=100.0)
        took_s = time.perf_counter() - began_s
    tokens = sum(each.answer.tokens for each in exchanges)
    found = {
        "requests": sum(each.answer.failure is None for each in exchanges),
        "tokens": tokens,
        "tok_s": tokens / took_s,
        "ttft_ms": _figures([each.ttft_s * 1e3 for each in exchanges if each.ttft_s is not None]),
        "itl_ms": {name: 1e3 * value for name, value in _figures([gap for each in exchanges for gap in each.itl_s]).items()},
        "merged_share": sum(each.answer.merged_events for each in exchanges) / max(1, tokens),
        "failures": [each.answer.failure for each in exchanges if each.answer.failure is not None][:5],
    }
    options.output.write_text(json.dumps(found))


def _figures(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {"mean": sum(ordered) / len(ordered), "p50": _quantile(ordered, 0.5), "p99": _quantile(ordered, 0.99)}


def _quantile(ordered: list[float], q: float) -> float:
    place = (len(ordered) - 1) * q
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


if __name__ == "__main__":
    main()
