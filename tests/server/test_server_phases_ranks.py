"""Four ranks write one log: the recorded single-rank starts, written again as TP=4 writes them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from pytest_sglang.server import log, phases
from pytest_sglang.server.phases import Timeline

Recorded = Callable[[str], str]
RANKS = 4
# lines that every rank prints, the others being rank 0's or the main process's own
ALL = re.compile(
    r"Init torch distributed|Load weight (?:begin|end)|KV Cache is allocated|Memory pool end|Capture (?:cuda|piecewise CUDA) graph (?:begin|end)"
)
RANK_0 = re.compile(r"Using KV cache dtype|Capture cuda graph (?:bs|num tokens)|max_total_num_tokens|Disable piecewise")
BLOCK = re.compile(r"Autotune Choices Stats:\n.*?SingleProcess AUTOTUNE[^\n]*\n", re.DOTALL)


def of_four_ranks(text: str, seed: int) -> str:
    """The start in ``text`` as four ranks write it: rank words, lines in any order, blocks torn apart, some lines cut or glued to a bar."""
    noise = random.Random(seed)
    text = BLOCK.sub(lambda match: torn([match[0]] * RANKS, noise), text)
    out: list[str] = []
    for line in text.splitlines(keepends=True):
        match = re.match(r"(.*?)(\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\] (.*)", line, re.DOTALL)
        if match is None or not (ALL.match(match[3]) or RANK_0.match(match[3])):
            out.append(line)
            continue
        before, stamp, rest = match.groups()
        ranks = list(range(RANKS)) if ALL.match(rest) else [0]
        noise.shuffle(ranks)
        copies = [f"{stamp} TP{rank}] {rest}" for rank in ranks]
        if len(copies) > 1 and noise.random() < 0.5:
            # one rank's write lands in the middle of another's
            cut = noise.randrange(len(copies[0]) - 1)
            copies[:2] = [copies[0][:cut] + copies[1] + copies[0][cut:]]
        out.append(before + "".join(copies))
    return "".join(out)


def torn(blocks: list[str], noise: random.Random) -> str:
    """Lines of several blocks in one stream, each block's own order kept."""
    queues = [block.splitlines(keepends=True) for block in blocks]
    merged = []
    while any(queues):
        merged.append(noise.choice([queue for queue in queues if queue]).pop(0))
    return "".join(merged)


def _read(text: str) -> Timeline:
    return phases.timeline(log.starts(log.split(text))[-1])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["sglang-0.5.11-h200-plain", "sglang-0.5.11-h200-compile-cold", "sglang-0.5.11-h200-compile-warm"])
def test_four_interleaving_ranks_tell_the_same_start_as_one(recorded: Recorded, name: str, seed: int) -> None:
    alone, four = _read(recorded(name)), _read(of_four_ranks(recorded(name), seed))
    assert [phase.id for phase in four.phases] == [phase.id for phase in alone.phases]
    for phase, same in zip(four.phases, alone.phases, strict=True):
        assert abs(phase.begin_s - same.begin_s) <= 1.0
    assert four.ready_at == alone.ready_at
    assert four.autotune_runs == RANKS * alone.autotune_runs
    assert four.progress == alone.progress
    assert four.capture_s == alone.capture_s
    assert four.notes["kv_tokens"] == alone.notes["kv_tokens"]
    assert [each for each in four.findings if each.severity != "info"] == []


def test_progress_of_rank_0_stands_while_the_others_still_write(recorded: Recorded) -> None:
    text = of_four_ranks(recorded("sglang-0.5.11-h200-compile-cold"), 1)
    half = text[: text.index("75%")]
    late = "[2026-11-23 22:22:40 TP3] Capture cuda graph begin. This can take up to several minutes. avail mem=83.26 GB\n"
    found = _read(half + late)
    assert found.phase == "capture_decode"
    assert found.inside.startswith("2/4 (bs=2)")
    assert found.inside.endswith("shapes tuned")


def test_a_line_glued_behind_a_bar_and_another_line_is_read() -> None:
    text = (
        "Capturing batches (bs=8 avail_mem=4.82 GB):  25%|██▌       | 1/4 [00:28<01:25, 28.59s/it]"
        "[2026-01-02 03:04:05 TP1] Load wei[2026-01-02 03:04:05 TP2] Memory pool end. avail mem=4.91 GB\nght begin.\n"
    )
    assert [(line.ranks, line.text) for line in log.split(text)] == [
        ("", "Capturing batches (bs=8 avail_mem=4.82 GB):  25%|██▌       | 1/4 [00:28<01:25, 28.59s/it]"),
        ("TP1", "Load wei"),
        ("TP2", "Memory pool end. avail mem=4.91 GB"),
        ("", "ght begin."),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_traceback_that_other_ranks_write_into_keeps_its_cause(recorded: Recorded, seed: int) -> None:
    noise, text = random.Random(seed), recorded("sglang-0.5.23-cpu-compile-crash")
    begin, end = text.index("Scheduler hit an exception"), text.index("[2026-11-23 23:02:27] Received sigquit")
    lines = text[begin:end].splitlines(keepends=True)
    other = "[2026-11-23 23:02:27 TP{}] Capture target decode CPU graph begin. backend=disabled, avail mem=21.71 GB\n"
    for rank in (1, 2, 3):
        lines.insert(noise.randrange(1, len(lines)), other.format(rank))
    found = _read(text[:begin] + "".join(lines) + text[end:])
    assert found.failure is not None
    assert found.failure.cause == "AttributeError: 'TorchNativeAttnBackend' object has no attribute 'init_cpu_graph_state'"
    assert "in init_cuda_graphs" in found.failure.traceback
    assert "TP1" not in found.failure.traceback


def test_of_two_ranks_that_fail_the_first_one_is_the_cause() -> None:
    text = "".join(
        f'[2026-01-02 03:04:05 TP{rank}] Scheduler hit an exception: Traceback (most recent call last):\n  File "x.py", line 1\n{error}\n'
        for rank, error in (
            (2, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
            (0, "RuntimeError: NCCL error in: x"),
        )
    )
    found = _read(text)
    assert found.failure is not None
    assert (found.failure.kind, found.failure.cause[:22]) == ("out-of-memory", "torch.OutOfMemoryError")


COLLECTED = {
    "journalctl": "Nov 23 22:22:04 rig python[4711]: ",
    "journalctl -o short-iso": "2026-11-23T22:22:04+0000 rig python[4711]: ",
    "docker compose": "sglang-1  | ",
    "docker logs -t": "2026-11-23T22:22:04.123456789Z ",
    "kubectl logs --prefix": "[pod/sglang-0/server] ",
}


@pytest.mark.parametrize("prefix", COLLECTED.values(), ids=COLLECTED.keys())
def test_what_a_collector_puts_before_each_line_is_left_out(recorded: Recorded, prefix: str) -> None:
    text = recorded("sglang-0.5.23-cpu-compile-crash")
    collected = "".join(f"{prefix}{line}\n" for line in text.splitlines())
    found = _read(collected)
    assert found.phases == _read(text).phases
    assert found.failure is not None
    assert found.failure.cause == "AttributeError: 'TorchNativeAttnBackend' object has no attribute 'init_cpu_graph_state'"


def test_colours_are_left_out() -> None:
    line = log.split("\x1b[32m[2026-01-02 03:04:05]\x1b[0m \x1b[1mThe server is fired up and ready to roll!\x1b[0m")[0]
    assert line.text == "The server is fired up and ready to roll!"
