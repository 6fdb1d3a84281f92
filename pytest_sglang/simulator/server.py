"""The simulated SGLang, a process of its own: ``python -m pytest_sglang.simulator.server --rig DIR [flags of SGLang]``.

Whoever reads the command line finds in SGLang's own flags what is served; they go into the argument echo as they stand.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sglang.simulator import furnish, schedulers
from pytest_sglang.simulator.clock import RigClock
from pytest_sglang.simulator.config import Config
from pytest_sglang.simulator.crashes import HANG_S
from pytest_sglang.simulator.log import Log, set_up
from pytest_sglang.simulator.startup import EARLY_RATE, EARLY_S, REAL_BEFORE_PORT_S, Startup
from pytest_sglang.simulator.state import HardwareState
from pytest_sglang.simulator.unit import Unit

if TYPE_CHECKING:
    from pytest_sglang.simulator.api import Serving

_ECHO = Path(__file__).parent / "recorded" / "server_args.json"
_RENAMED = {"tp": "tp_size"}
DRAIN_LOOK_S = 0.5
"""How often the drain looks for running requests; the real one looks every 5 s."""
DRAIN_LIMIT_S = 20.0


def server_args(flags: Sequence[str], port: int) -> dict[str, Any]:
    """Every argument of a recorded 0.5.11 with these flags in place."""
    args: dict[str, Any] = json.loads(_ECHO.read_text(encoding="utf-8"))
    words = list(flags)
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        name = _RENAMED.get(name, name)
        if not words or words[0].startswith("--"):
            args[name] = True
            continue
        text, known = words.pop(0), args.get(name)
        # bool is an int: only real numbers are converted
        args[name] = type(known)(text) if isinstance(known, (int, float)) and not isinstance(known, bool) else text
    return args | {"tokenizer_path": args["model_path"], "port": port}


def _import_heavy() -> None:
    """uvicorn and starlette take a third of a second to import: meanwhile the simulated weights load."""
    import uvicorn.lifespan.on
    import uvicorn.protocols.http.httptools_impl  # noqa: F401

    import pytest_sglang.simulator.api  # noqa: F401


def main(argv: Sequence[str]) -> None:
    """Start, serve, and end by signal."""
    words = list(argv)
    old = "--old" in words
    words = [word for word in words if word != "--old"]
    if words[:1] != ["--rig"] or len(words) < 2:
        raise SystemExit("usage: python -m pytest_sglang.simulator.server --rig DIR [flags] (started by the simulated systemctl)")
    config = Config.load(Path(words[1]))
    args = server_args(words[2:], config.port)
    clock = RigClock(config.directory)
    log = Log(clock, len(config.hardware.serving))
    state = HardwareState(config.directory, config.hardware)
    if old:
        _serve_on(config, args, log, state)
        return
    importing = threading.Thread(target=_import_heavy)
    importing.start()
    number, launched_s = _launch(Unit(config), clock)
    if config.acts("orphaned-scheduler", number):
        schedulers.start(config.directory, state)
    if config.acts("sigterm-ignored", number):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    seed = f"{config.seed}/{number}" if config.seed else None
    # kernels that were there before are taken as they are, stale or not
    stale = config.acts("garbled-answers", number) and not furnish.caches_of(config, number).missing()
    Startup(config, clock, log, state, args).play(launched_s, number, random.Random(seed))
    importing.join()
    set_up(log)
    from pytest_sglang.simulator.api import Serving
    from pytest_sglang.simulator.engine import Engine

    serving = Serving(Engine(config, state, log, seed, number, stale=stale), log, args)
    faults = {fault for fault in config.faults if config.acts(fault, number)}
    if "impostor" in faults:
        _wait_taken(config.port)
    late, library = furnish.late_work(config, number), furnish.mapped(config)

    async def warm_up() -> None:
        await _warm_up(serving, config.port, clock, faults)
        if late is not None:
            await _at_first_request(serving, late)

    try:
        asyncio.run(_serve(serving, config.port, warm_up))
    except SystemExit:
        # uvicorn could not bind; the warm-up thread of the real one is answered by whoever listens, and says that all is well
        asyncio.run(_warm_up(serving, config.port, clock, faults))
        raise
    finally:
        library.close()


def _serve_on(config: Config, args: dict[str, Any], log: Log, state: HardwareState) -> None:
    """An old server that still has its port."""
    set_up(log)
    from pytest_sglang.simulator.api import Serving
    from pytest_sglang.simulator.engine import Engine

    async def nothing() -> None:
        return None

    asyncio.run(_serve(Serving(Engine(config, state, log, None), log, args, status="Up"), config.port, nothing))


def _wait_taken(port: int) -> None:
    """Until somebody listens on ``port``."""
    deadline_s = time.monotonic() + 20.0
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


def _launch(unit: Unit, clock: RigClock) -> tuple[int, float]:
    """Number of this start and the rig time of the launch, from the unit whose process this is."""
    deadline_s = time.monotonic() + 2.0
    while time.monotonic() < deadline_s:
        state = unit.state()
        if state.main_pid == os.getpid():
            return state.starts, clock.from_monotonic(state.started_us / 1e6)
        time.sleep(0.005)
    return 1, clock.time()  # started by hand


async def _serve(serving: Serving, port: int, warm_up: Callable[[], Awaitable[None]]) -> None:
    import uvicorn

    from pytest_sglang.simulator.api import Api

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            # SGLang drains by itself
            yield

    config = uvicorn.Config(
        Api(serving).application(warm_up),
        host="127.0.0.1",
        port=port,
        log_config=None,
        loop="asyncio",
        http="httptools",
        ws="none",
        lifespan="on",
        timeout_keep_alive=5,
    )
    loop = asyncio.get_running_loop()
    drains: set[asyncio.Task[None]] = set()
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGTERM, lambda: drains.add(loop.create_task(_drain(serving))))
    await Server(config).serve()


async def _warm_up(serving: Serving, port: int, clock: RigClock, faults: set[str]) -> None:
    """As SGLang does: look whether the port answers, make one request of 8 tokens, then call itself up."""
    if "port-opens-early" in faults:
        until_s = clock.time() + EARLY_S
        # slowly enough for whoever looks ten times a second to see when the port opened
        clock.fast_until(until_s - REAL_BEFORE_PORT_S, rate=EARLY_RATE)
        await asyncio.to_thread(clock.sleep_until, until_s)
        clock.real()
    while True:
        await asyncio.sleep(0.3)
        try:
            await _ask(port, "GET", "/model_info", b"", serving)
            break
        except OSError:
            continue
    if "hung-engine" in faults:
        clock.fast_until(clock.time() + HANG_S)
        await asyncio.Event().wait()
    body = {"text": "The capital city of France is", "sampling_params": {"temperature": 0, "max_new_tokens": 8}}
    await _ask(port, "POST", "/generate", json.dumps(body).encode(), serving)
    if serving.status == "Starting":
        serving.status = "Up"
    serving.log.line("The server is fired up and ready to roll!")


async def _at_first_request(serving: Serving, work: Callable[[], None]) -> None:
    """Do ``work`` while the first request after the warm-up runs; a health check generates one token and does not count."""
    while not any(request.max_tokens > 1 for request in serving.engine.running.values()):
        await asyncio.sleep(0.02)
    work()


async def _ask(port: int, method: str, path: str, body: bytes, serving: Serving) -> None:
    key = serving.args.get("api_key")
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    length = f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{authorization}{length}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        await reader.read()
    finally:
        writer.close()


async def _drain(serving: Serving) -> None:
    """SIGTERM: health turns 503 at once, requests that run may finish, new ones are still taken; then the tree is ended."""
    if serving.status == "Draining":
        return
    serving.status = "Draining"
    log, engine = serving.log, serving.engine
    log.line("SIGTERM received. signum=None frame=None. Draining requests and shutting down...")
    deadline_s = time.monotonic() + DRAIN_LIMIT_S
    while True:
        await asyncio.sleep(DRAIN_LOOK_S)
        left = list(engine.running)
        log.line(f"Gracefully exiting... Remaining number of requests {len(left)}. Remaining requests remaining_rids={left}.")
        if not left or time.monotonic() > deadline_s:
            break
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
