"""The scheduler and the start script in this process: times, batches, ends, what is logged."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_sglang.simulator import startup, wire
from pytest_sglang.simulator.caches import Caches
from pytest_sglang.simulator.clock import RigClock
from pytest_sglang.simulator.engine import Engine, Request
from pytest_sglang.simulator.log import Log
from pytest_sglang.simulator.rig import SimulatedRig
from pytest_sglang.simulator.server import server_args
from pytest_sglang.simulator.startup import Startup
from pytest_sglang.simulator.state import HardwareState


@pytest.fixture
def create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SimulatedRig]]:
    made: list[SimulatedRig] = []
    # a thousand files that hardly any of these tests look at
    monkeypatch.setattr(Caches, "fill", lambda _: None)

    def rig(*faults: str, **options: Any) -> SimulatedRig:
        made.append(
            SimulatedRig.create(tmp_path / str(len(made)), faults=faults, **({"power_w": 390.0, "speed": 20_000.0} | options))
        )
        return made[-1]

    yield rig
    for each in made:
        each.destroy()


def _engine(rig: SimulatedRig, seed: str | None = "1") -> Engine:
    state = HardwareState(rig.directory, rig.config.hardware)
    return Engine(rig.config, state, Log(RigClock(rig.directory), 4), seed)


async def _all(engine: Engine, request: Request) -> list[list[int]]:
    return [list(chunk) async for chunk in engine.run(request)]


def _run(engine: Engine, *requests: Request) -> list[list[list[int]]]:
    async def together() -> list[list[list[int]]]:
        return list(await asyncio.gather(*(_all(engine, each) for each in requests)))

    return asyncio.run(together())


# --- the scheduler -------------------------------------------------------------------------------------------------------------


def test_a_chunk_carries_one_token_and_a_few_carry_two(
    create: Callable[..., SimulatedRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_sglang.simulator.engine.DOUBLE_SHARE", 0.3)
    (chunks,) = _run(_engine(create()), Request([5, 6, 7], 40, ignore_eos=True))
    sizes = [len(chunk) for chunk in chunks]
    assert (sum(sizes), sizes[0], max(sizes)) == (40, 1, 2)
    assert 3 <= sizes.count(2) <= 15


def test_late_wake_ups_do_not_add_up(create: Callable[..., SimulatedRig]) -> None:
    engine, request = _engine(create()), Request([5], 30, ignore_eos=True)

    async def disturbed() -> None:
        playing = asyncio.ensure_future(_all(engine, request))
        for _ in range(3):
            await asyncio.sleep(0.1)
            time.sleep(0.04)
        await playing

    asyncio.run(disturbed())
    assert request.first_s is not None
    assert request.last_s is not None
    assert 29 / (request.last_s - request.first_s) == pytest.approx(engine.tok_s(), rel=0.04)


def test_the_speed_of_a_request_varies_by_one_percent(create: Callable[..., SimulatedRig]) -> None:
    engine = _engine(create())
    near: list[float] = []
    # the clock is the machine's: what a busy one delays is made again
    for n in range(3, 23):
        request = Request([n, n + 1], 12, ignore_eos=True)
        _run(engine, request)
        speed = 11 / (request.last_s - request.first_s)  # type: ignore[operator]
        near += [speed] if speed == pytest.approx(engine.tok_s(), rel=0.045) else []
        if len(near) == 4:
            break
    assert len(near) == 4
    assert len({round(speed, 2) for speed in near}) > 1


def test_speed_by_faults_and_links(create: Callable[..., SimulatedRig]) -> None:
    assert _engine(create()).tok_s() == pytest.approx(52.5 * 1.11)
    assert _engine(create("nvlink-dead")).tok_s() == pytest.approx(52.5)
    assert _engine(create("slow-decode")).tok_s() == pytest.approx(52.5 * 1.11 * 0.8)


def test_more_requests_than_fit_wait(create: Callable[..., SimulatedRig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_sglang.simulator.engine.MAX_RUNNING", 2)
    engine = _engine(create())
    requests = [Request([n], 4, ignore_eos=True) for n in range(3)]

    async def crowded() -> None:
        playing = asyncio.gather(*(_all(engine, each) for each in requests))
        await asyncio.sleep(0.03)
        assert (len(engine.running), engine.waiting, engine.flush()) == (2, 1, False)
        await playing

    asyncio.run(crowded())
    assert [len(each.output) for each in requests] == [4, 4, 4]
    assert max(each.queued_s for each in requests) > 0.05
    assert engine.metrics.requests == 3


def test_ends(create: Callable[..., SimulatedRig]) -> None:
    exact, early = Request([5], 6, ignore_eos=True), Request([5], 6, ignore_eos=True)
    _run(_engine(create()), exact)
    _run(_engine(create("early-stop")), early)
    assert (len(exact.output), exact.finish) == (6, {"type": "length", "length": 6})
    assert (len(early.output), early.finish_reason, early.matched_stop) == (3, "stop", 2)
    assert exact.output[:3] == early.output


def test_without_ignore_eos_a_model_ends_by_itself(create: Callable[..., SimulatedRig], monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request([5], 5000)
    monkeypatch.setattr("pytest_sglang.simulator.answers.random.Random.randint", lambda *_: 4)
    _run(_engine(create()), request)
    assert (len(request.output), request.finish_reason) == (4, "stop")


def test_an_abort_of_everything(create: Callable[..., SimulatedRig]) -> None:
    engine, requests = _engine(create()), [Request([n], 500, ignore_eos=True) for n in range(2)]

    async def stopped() -> None:
        playing = asyncio.gather(*(_all(engine, each) for each in requests))
        await asyncio.sleep(0.15)
        engine.abort(None)
        await asyncio.wait_for(playing, 2.0)

    asyncio.run(stopped())
    assert [each.finish_reason for each in requests] == ["abort", "abort"]
    assert engine.metrics.aborted == 2


def test_a_reader_that_goes_away_leaves_the_request_running_for_a_while(
    create: Callable[..., SimulatedRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_sglang.simulator.engine.ABORT_AFTER_S", 0.1)
    engine = _engine(create())

    async def leave() -> None:
        playing = asyncio.ensure_future(_all(engine, Request([5], 500, ignore_eos=True)))
        await asyncio.sleep(0.15)
        playing.cancel()
        await asyncio.sleep(0.02)
        assert len(engine.running) == 1
        await asyncio.sleep(0.15)
        assert engine.running == {}

    asyncio.run(leave())
    assert engine.metrics.aborted == 1


def test_prefixes_are_remembered_up_to_a_number(create: Callable[..., SimulatedRig]) -> None:
    engine = _engine(create())
    assert [engine._match([1, 2, 3, 4]), engine._match([1, 2, 9]), engine._match([1, 2, 3, 4])] == [0, 2, 3]
    for number in range(70):
        engine._match([100 + number])
    assert engine._match([1, 2, 3, 4]) == 0
    assert engine.flush()


def test_a_decode_line_every_forty_steps(create: Callable[..., SimulatedRig], capfd: pytest.CaptureFixture[str]) -> None:
    engine = _engine(create())
    _run(engine, Request([5], 45, ignore_eos=True))
    lines = re.findall(r"Decode batch, #running-req: 1, .* gen throughput \(token/s\): ([\d.]+)", capfd.readouterr().err)
    assert len(lines) == 1
    assert engine.gen_throughput == pytest.approx(float(lines[0]), abs=0.01)
    assert engine.metrics.realtime["decode"] == 40


def test_events_of_every_kind(create: Callable[..., SimulatedRig]) -> None:
    bodies: dict[wire.Kind, bytes] = {
        "chat": b'{"messages":[{"role":"user","content":"the"}],"max_tokens":3,"ignore_eos":true,"stream_options":{"include_usage":true}}',
        "completions": b'{"prompt":"the","max_tokens":3,"ignore_eos":true,"stream_options":{"include_usage":true}}',
        "generate": b'{"text":"the","sampling_params":{"max_new_tokens":3,"ignore_eos":true}}',
    }
    engine = _engine(create())
    for kind, body in bodies.items():
        asked = wire.parse(kind, body, "m")

        async def play(asked: wire.Asked = asked) -> list[str]:
            return [wire.chunk(asked, new) async for new in engine.run(asked.request)]

        text = "".join(asyncio.run(play())) + wire.ending(asked)
        assert text.endswith(wire.DONE)
        assert text.count('"finish_reason":"length"') == (0 if kind == "generate" else 1)
        assert text.count('"role":"assistant"') == (1 if kind == "chat" else 0)
        assert text.count('"choices":[]') == (0 if kind == "generate" else 1)
        whole = wire.whole(asked)
        made = whole["meta_info"] if kind == "generate" else whole["usage"]
        assert (made["completion_tokens"], made["prompt_tokens"]) == (3, 3 if kind == "chat" else 1)


# --- the start script ----------------------------------------------------------------------------------------------------------


def _startup(rig: SimulatedRig, capfd: pytest.CaptureFixture[str], number: int = 1) -> str:
    clock, state = RigClock(rig.directory), HardwareState(rig.directory, rig.config.hardware)
    starting = Startup(rig.config, clock, Log(clock, 4), state, server_args([], rig.port))
    starting.play(clock.time(), number, random.Random(3))
    return capfd.readouterr().err


@pytest.fixture(autouse=True)
def _no_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "REAL_BEFORE_PORT_S", 0.0)


def test_a_start_is_as_cold_as_its_caches_are_empty(create: Callable[..., SimulatedRig], capfd: pytest.CaptureFixture[str]) -> None:
    rig = create()
    caches = Caches(rig.config.triton_dir, rig.config.inductor_dir, rig.config.model)

    def start() -> tuple[float, int]:
        begin_s = rig.clock.time()
        log = _startup(rig, capfd)
        stamps = [
            time.mktime(time.strptime(each, "%Y-%m-%d %H:%M:%S")) for each in re.findall(r"^\[([^\]T]+?)(?: TP\d)?\]", log, re.M)
        ]
        assert stamps == sorted(stamps)
        return rig.clock.time() - begin_s, log.count("SingleProcess AUTOTUNE")

    caches.empty()
    cold_s, cold_tuned = start()
    warm_s, warm_tuned = start()
    assert (cold_tuned, warm_tuned) == (40, 0)
    assert cold_s == pytest.approx(startup.COLD_READY_S, rel=0.035)
    assert warm_s == pytest.approx(startup.WARM_READY_S, rel=0.06)
    assert rig.clock.rate == 1.0


def test_phases_follow_each_other_as_recorded(create: Callable[..., SimulatedRig], capfd: pytest.CaptureFixture[str]) -> None:
    log = _startup(create(), capfd)
    stages = (
        "server_args=ServerArgs(",
        "Init torch distributed begin.",
        "Init torch distributed ends.",
        "Load weight begin.",
        "Loading safetensors checkpoint shards: 100% Completed | 9/9",
        "Load weight end.",
        "KV Cache is allocated.",
        "Memory pool end.",
        "Capture cuda graph begin.",
        "Capturing batches (bs=1 avail_mem=4.72 GB): 100%|██████████| 6/6",
        "Capture cuda graph end.",
        "max_total_num_tokens=",
    )
    places = [log.index(stage) for stage in stages]
    assert places == sorted(places)
    assert [log.count(f" TP{rank}] Capture cuda graph end.") for rank in range(4)] == [1, 1, 1, 1]


def test_load_and_memory_follow_the_phases(create: Callable[..., SimulatedRig], monkeypatch: pytest.MonkeyPatch) -> None:
    rig, seen = create(), []
    monkeypatch.setattr(HardwareState, "set_load", lambda _, load, memory_b=None: seen.append((load, memory_b)))
    clock = RigClock(rig.directory)
    state = HardwareState(rig.directory, rig.config.hardware)
    Startup(rig.config, clock, Log(clock, 4), state, server_args([], rig.port)).play(clock.time(), 1, random.Random(3))
    assert [load for load, _ in seen] == [0.1, 0.1, 0.35, 0.0]
    memory = [memory_b for _, memory_b in seen]
    assert memory == sorted(memory)


def test_a_dying_start_kills_itself_after_telling_why(
    create: Callable[..., SimulatedRig], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []

    def kill(_: int, signum: int) -> None:
        killed.append(signum)
        raise SystemExit

    monkeypatch.setattr("os.kill", kill)
    rig = create("dies-loading")
    with pytest.raises(SystemExit):
        _startup(rig, capfd, number=2)
    log = capfd.readouterr().err
    assert killed == [9]
    assert log.count("Scheduler hit an exception: Traceback") == 1
    assert rig.clock.rate == 1.0


def test_a_hanging_start_waits_for_a_signal(
    create: Callable[..., SimulatedRig], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause() -> None:
        raise SystemExit

    monkeypatch.setattr("signal.pause", pause)
    rig = create("never-ready")
    with pytest.raises(SystemExit):
        _startup(rig, capfd, number=2)
    assert rig.clock.rate > 1.0
    assert capfd.readouterr().err.endswith("0/6 [00:00<?, ?it/s]")
