"""The measuring client at a real SGLang: its tokens are the server's, its rates those of the server's counters and of SGLang's own client."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from engine_servers import HERE, Engine, Server

from pytest_sglang.load.answer import Api
from pytest_sglang.load.client import Client, Target
from pytest_sglang.load.rounds import Exchange
from pytest_sglang.server.http import ControlPlane
from pytest_sglang.session.measure import Workload, measure
from pytest_sglang.session.tokenizing import Tokenizer

GENERATED = "sglang:generation_tokens_total"
DECODED = 'sglang:realtime_tokens_total{mode="decode"}'


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def clocks_apart_s() -> float:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC."""
    return time.time() - time.monotonic()


@pytest.mark.parametrize(("api", "streams"), [("completions", 1), ("chat", 3), ("native", 2)])
def test_token_counts_equal_the_servers(plain_server: Server, api: Api, streams: int) -> None:
    with ControlPlane(url(plain_server), timeout_s=60) as plane:
        before = plane.metrics()
        found = measure(
            Workload(url=url(plain_server), api=api, streams=streams, tokens=40, requests=2 * streams, prompt_tokens=33),
            lambda _: None,
            timeout_s=60,
        )
        after = plane.metrics()
    assert found.figures.failures == {}
    assert found.figures.output_tokens == found.server_tokens == 80 * streams
    assert (found.inconclusive, found.unknown) == ((), ())
    assert found.figures.clock == "usage"
    # by /tokenize before, by usage afterwards; a chat template adds its own
    if api != "chat":
        assert found.figures.prompt_tokens == 33
    assert before is not None
    assert after is not None
    requests = 2 * streams
    assert after[GENERATED] - before[GENERATED] == 40 * requests + 16
    # the first token of an answer is the prefill's
    assert after[DECODED] - before[DECODED] == 39 * requests + 15


class Reading(NamedTuple):
    """The decode counter, read between two moments (epoch seconds)."""

    asked_s: float
    told_s: float
    tokens: float

    @property
    def at_s(self) -> float:
        return (self.asked_s + self.told_s) / 2

    @property
    def took_s(self) -> float:
        return self.told_s - self.asked_s


@contextmanager
def counter_readings(server: Server) -> Iterator[list[Reading]]:
    """Reads the server's decode counter again and again while the block runs."""
    found: list[Reading] = []
    over = threading.Event()

    def read() -> None:
        with ControlPlane(url(server), timeout_s=60) as plane:
            while not over.wait(0.1):
                asked_s = time.time()
                metrics = plane.metrics()
                if metrics is not None and DECODED in metrics:
                    found.append(Reading(asked_s, time.time(), metrics[DECODED]))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def streamed(server: Server, tokens: int, at_tokens: int = 0, then: Any = None) -> Exchange:
    """One stream; ``then`` is called once so many tokens have arrived."""
    with ControlPlane(url(server), timeout_s=60) as plane:
        prompt = Tokenizer(plane).prompts(1, 20, seed=tokens)
    called: list[int] = []

    def tick(so_far: int) -> None:
        if then is not None and so_far >= at_tokens and not called:
            called.append(so_far)
            then()

    with Client(Target(url=url(server), model="any"), 1) as client:
        found = client.run(prompt, tokens, timeout_s=300, on_tick=tick)[0]
        assert client.clock_step is None
    assert found.answer.failure is None
    return found


def arrived(found: Exchange, begin_s: float, end_s: float) -> float:
    return found.tokens_at(end_s * 1e9) - found.tokens_at(begin_s * 1e9)


def test_decode_rate_is_that_of_the_servers_counter(plain_server: Server) -> None:
    """Over a window inside one stream, between the two readings that took least time in its first and last third."""
    with counter_readings(plain_server) as readings:
        found = streamed(plain_server, 800)
    begin_s, end_s = found.answer.times_ns[0] / 1e9, found.answer.times_ns[-1] / 1e9
    third = (end_s - begin_s) / 3
    early = [each for each in readings if begin_s < each.asked_s and each.told_s < begin_s + third]
    late = [each for each in readings if end_s - third < each.asked_s and each.told_s < end_s]
    first, last = (min(each, key=lambda reading: reading.took_s) for each in (early, late))
    counted = last.tokens - first.tokens
    assert counted > 200
    # whenever within its reading the counter was looked at, it lies between these; a few tokens are on their way to us
    assert arrived(found, first.told_s, last.asked_s) - 8 <= counted <= arrived(found, first.asked_s, last.told_s) + 8
    rate = arrived(found, first.at_s, last.at_s) / (last.at_s - first.at_s)
    server_rate = counted / (last.at_s - first.at_s)
    print(f"client {rate:.2f} tok/s, counter {server_rate:.2f} tok/s over {last.at_s - first.at_s:.1f} s")
    assert rate == pytest.approx(server_rate, rel=0.02)


def test_decode_rate_is_that_of_sglangs_own_client(plain_server: Server, servers: Engine) -> None:
    """Both streams run in one batch, step by step together: over the time of the shorter one their tokens are as many."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(HERE / "engine" / "shim"),
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(plain_server.home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    script = Path(HERE, "engine", "serving_client.py")
    command = [str(servers.folder / "venv" / "bin" / "python"), str(script), url(plain_server), "300"]
    with subprocess.Popen(
        command, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        assert any(line == "ready\n" for line in peer.stdout)

        def go() -> None:
            assert peer.stdin is not None
            peer.stdin.write("\n")
            peer.stdin.flush()

        ours = streamed(plain_server, 700, at_tokens=20, then=go)
        theirs = json.loads(peer.communicate(timeout=120)[0])
    assert (theirs["success"], theirs["error"], theirs["tokens"]) == (True, "", 300)
    first_s, last_s = theirs["first_s"] + clocks_apart_s(), theirs["last_s"] + clocks_apart_s()
    assert ours.answer.times_ns[0] / 1e9 < first_s < last_s < ours.answer.times_ns[-1] / 1e9
    rate = arrived(ours, first_s, last_s) / (last_s - first_s)
    peers_rate = theirs["after_first"] / (last_s - first_s)
    print(f"ours {rate:.2f} tok/s, sglang's {peers_rate:.2f} tok/s over {last_s - first_s:.1f} s")
    assert rate == pytest.approx(peers_rate, rel=0.02)
