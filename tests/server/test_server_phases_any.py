"""Whatever is done to a log, the parser neither breaks nor finds a server ready that did not say so."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_sglang.record.values import PHASES
from pytest_sglang.server import log, phases
from pytest_sglang.server.phases import Timeline

LOGS = Path(__file__).parent.parent / "data" / "logs"
NAMES = sorted(path.stem for path in LOGS.glob("*.log"))
READY = "The server is fired up and ready to roll!"
PORT, HEALTH = "Uvicorn running on ", re.compile(r'"GET /(?:health|ready)\S* HTTP/1\.1" 200')
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@cache
def start_of(name: str) -> str:
    """The recorded start without what it served, so that an example takes milliseconds."""
    text = (LOGS / f"{name}.log").read_text(encoding="utf-8")
    end = text.find(READY)
    return text if end < 0 else text[: end + len(READY) + 2000]


@cache
def never_ready(name: str) -> str:
    """The same without any line that says ready."""
    lines = start_of(name).splitlines(keepends=True)
    return "".join(line for line in lines if READY not in line and not HEALTH.search(line))


def told_ready(text: str) -> bool:
    return READY in text or (PORT in text and HEALTH.search(text) is not None)


def sound(found: Timeline) -> None:
    ids = [phase.id for phase in found.phases]
    assert len(ids) == len(set(ids))
    assert set(ids) <= set(PHASES)
    begins = [phase.begin_s for phase in found.phases]
    assert begins == sorted(begins)
    for phase, after in zip(found.phases, found.phases[1:], strict=False):
        assert phase.end_s == after.begin_s
    assert all(phase.end_s is None or phase.end_s >= phase.begin_s >= 0 for phase in found.phases)
    if found.ready_at is not None and found.phases and found.launched_at is not None:
        total = sum((phase.end_s or 0) - phase.begin_s for phase in found.phases)
        assert abs(total - max(0.0, found.ready_at - found.launched_at)) < 1e-6


def every_start(text: str) -> list[Timeline]:
    found = [phases.timeline(each) for each in log.starts(log.split(text))]
    for each in found:
        sound(each)
    return found


@quick
@given(name=st.sampled_from(NAMES), data=st.data())
def test_a_log_cut_anywhere(name: str, data: st.DataObject) -> None:
    text = start_of(name)
    begin = data.draw(st.integers(0, len(text)) | st.just(0))
    end = data.draw(st.integers(begin, len(text)))
    part = text[begin:end]
    for each in every_start(part):
        assert each.ready_at is None or told_ready(part)


@quick
@given(name=st.sampled_from(NAMES), cuts=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 400)), max_size=8))
def test_pieces_that_are_lost_invent_no_readiness(name: str, cuts: list[tuple[int, int]]) -> None:
    text = never_ready(name)
    for begin, length in cuts:
        at = begin % len(text)
        text = text[:at] + text[at + length :]
    assert all(each.ready_at is None for each in every_start(text))


@quick
@given(one=st.sampled_from(NAMES), two=st.sampled_from(NAMES), seed=st.randoms(use_true_random=False))
def test_two_servers_that_write_into_one_log(one: str, two: str, seed: object) -> None:
    queues = [never_ready(name).splitlines(keepends=True) for name in (one, two)]
    merged = []
    while any(queues):
        merged.append(seed.choice([queue for queue in queues if queue]).pop(0))  # type: ignore[attr-defined]
    assert all(each.ready_at is None for each in every_start("".join(merged)))


@quick
@given(name=st.sampled_from(NAMES), seed=st.randoms(use_true_random=False))
def test_lines_in_any_order_break_nothing(name: str, seed: object) -> None:
    lines = start_of(name).splitlines(keepends=True)
    seed.shuffle(lines)  # type: ignore[attr-defined]
    every_start("".join(lines))


PIECES = st.sampled_from(
    [
        "[2026-01-02 03:04:05] ",
        "[2026-01-02 03:04:06.123 DP0 TP3] ",
        "[0000-00-00 99:99:99] ",
        "server_args=",
        "server_args={'a",
        "Load weight begin.",
        "Load weight end. elapsed=1.2.3 s",
        "Capture cuda graph begin.",
        "Capture cuda graph end. Time elapsed: . s",
        "25%|█",
        "| 1/4 [00:28<",
        "AUTOTUNE mm(4x4",
        "Traceback (most recent call last):\n",
        "ValueError: x\n",
        "\r",
        "\n",
        "\x1b[31m",
        "\0",
        "Engine startup timings (s): load_weight=.., x=1.2.3",
        '"GET /health HTTP/1.1" 200 OK',
    ]
)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(PIECES | st.text(max_size=20), max_size=30))
def test_any_text_at_all(parts: list[str]) -> None:
    text = "".join(parts)
    for each in every_start(text):
        assert each.ready_at is None or told_ready(text)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(NAMES), sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=30))
def test_a_file_followed_in_pieces_is_the_file_read_whole(tmp_path_factory, name: str, sizes: list[int]) -> None:  # type: ignore[no-untyped-def]
    data = start_of(name).encode()[: sum(sizes) * 3]
    path = tmp_path_factory.mktemp("followed") / "server.log"
    path.touch()
    source, position, text, at, turn = log.FileLog(path), log.FileLog.BEGIN, "", 0, 0
    while at < len(data):
        step = sizes[turn % len(sizes)]
        with path.open("ab") as file:
            file.write(data[at : at + step])
        at, turn = at + step, turn + 1
        new, position = source.tail_from(position)
        text += new
    assert text == data.decode("utf-8", errors="ignore")
