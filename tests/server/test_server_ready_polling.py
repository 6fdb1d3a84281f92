"""What the wait for readiness costs the server: counted on a scripted server and at our own sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.values import Startup
from pytest_sglang.server import ready
from pytest_sglang.server.attach import Attach
from pytest_sglang.server.http import ControlPlane
from pytest_sglang.server.ready import Progress, StartFailed


class Script:
    """A server whose status changes at moments that are fixed before, and that counts what it is asked."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.flag = True
        """Whether it knows /ready."""
        self.health_s = 0.0
        self.health = 200
        """What /health answers once it is up."""
        self.wrong_completions = 0
        self.completion_s = 0.0
        self.running: int | None = None
        """Requests that it says to have; None = it does not tell."""
        self.asked: list[tuple[float, str, bool]] = []
        """When, what, and whether it was up then."""
        self.at_once = Counter[str]()
        self.most_at_once = Counter[str]()
        self.up_at: float | None = None
        self.lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def open(self) -> None:
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def answer(self, body: Any) -> None:
                with script.lock:
                    script.asked.append((time.time(), self.path, script.up_at is not None))
                    script.at_once[self.path] += 1
                    script.most_at_once[self.path] = max(script.most_at_once[self.path], script.at_once[self.path])
                status, answer = script.respond(self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                with script.lock:
                    script.at_once[self.path] -= 1

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def respond(self, path: str, body: Any) -> tuple[int, Any]:
        up = self.up_at is not None
        if path == "/ready" and self.flag:
            return (200 if up else 503), {}
        if path == "/health":
            time.sleep(self.health_s if up else 0.0)
            return (self.health if up else 503), {}
        if path == "/v1/loads" and self.running is not None:
            return 200, {"loads": [{"num_running_reqs": self.running, "num_waiting_reqs": 0}]}
        if path == "/server_info":
            return 200, {"version": "0.5.23"}
        if path == "/v1/completions":
            time.sleep(self.completion_s)
            tokens = body["max_tokens"]
            with self.lock:
                self.wrong_completions -= 1
                tokens -= 3 if self.wrong_completions >= 0 else 0
            choice = {"text": "x", "finish_reason": "length" if tokens == body["max_tokens"] else "stop"}
            return 200, {"choices": [choice], "usage": {"completion_tokens": tokens}}
        return 404, {}

    def up(self) -> None:
        self.up_at = time.time()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def paths(self, *, before_up: bool = False) -> Counter[str]:
        return Counter(path for _, path, up in self.asked if not before_up or not up)


@pytest.fixture
def script(port: int) -> Iterator[Script]:
    made = Script(port)
    yield made
    made.close()


def _follow(script: Script, open_after_s: float, up_after_s: float) -> Startup:
    """The port opens, and the status changes so much later, counted from our first look on."""
    timers = [threading.Timer(open_after_s, script.open), threading.Timer(open_after_s + up_after_s, script.up)]

    def begin(_: Progress) -> None:
        if timers[0].ident is None:
            for each in timers:
                each.start()

    try:
        url, clock = f"http://127.0.0.1:{script.port}", SystemClock()
        controller = Attach(url, clock=clock)
        with ControlPlane(url) as plane:
            return ready.wait_ready(
                controller=controller,
                plane=plane,
                log=controller.log(),
                clock=clock,
                launched_at=clock.time(),
                budget_s=60.0,
                silence_s=60.0,
                progress=begin,
            )
    finally:
        for each in timers:
            each.join()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Moments of our connection attempts."""
    made: list[float] = []
    real: Callable[..., socket.socket] = socket.create_connection

    def counted(*arguments: Any, **more: Any) -> socket.socket:
        made.append(time.monotonic())
        return real(*arguments, **more)

    monkeypatch.setattr(ready.socket, "create_connection", counted)
    return made


@pytest.mark.parametrize("flag", [True, False])
def test_polling_costs_the_server_nothing_that_can_be_measured(flag: bool, script: Script, attempts: list[float]) -> None:
    script.flag, script.health_s = flag, 0.4
    startup = _follow(script, 1.5, 1.5)
    # at most twenty connection attempts in any second
    assert len(attempts) >= 5
    assert all(sum(begin <= each < begin + 1.0 for each in attempts) <= 20 for begin in attempts)
    before, every = script.paths(before_up=True), script.paths()
    asked = "/ready" if flag else "/health"
    assert 3 <= before[asked] <= 30
    # /server_info makes a round trip to the scheduler, names answer long before readiness, and nobody asks for tokens
    assert set(before) <= {"/ready", "/health"}
    assert before["/health"] == 0 or not flag
    assert before["/ready"] <= 1 or flag
    assert every["/server_info"] == 1
    assert every["/v1/completions"] == 1
    # no /health before the last one is answered, and only as often as it takes to confirm
    assert script.most_at_once["/health"] == 1
    assert every["/health"] - before["/health"] <= 2
    assert startup.ready_s is not None


@pytest.mark.parametrize("flag", [True, False])
def test_the_confirmation_is_not_counted(flag: bool, script: Script) -> None:
    script.flag, script.health_s, script.completion_s = flag, 1.0, 1.5
    begin = time.time()
    startup = _follow(script, 0.3, 0.7)
    assert script.up_at is not None
    assert startup.ready_s is not None
    assert startup.first_token_s is not None
    late = startup.launched_at + startup.ready_s - script.up_at
    # 0.3 s is promised; a busy machine's own delays are not what is tested here
    assert -0.1 < late < 1.0
    assert startup.first_token_s - startup.ready_s >= 1.5
    assert time.time() - begin >= 2.5
    assert startup.first_request_s == pytest.approx(1.5, abs=0.7)


def test_a_flag_alone_is_no_readiness(script: Script) -> None:
    script.health = 503
    with pytest.raises(StartFailed) as caught:
        _follow(script, 0.1, 0.1)
    assert caught.value.kind == "not ready"
    assert caught.value.cause == "it says that it is ready, but /health answers 503"


def test_a_completion_is_tried_again_before_it_is_held_against_the_server(script: Script) -> None:
    script.wrong_completions, script.completion_s = 1, 0.5
    startup = _follow(script, 0.1, 0.1)
    assert script.up_at is not None
    assert startup.ready_s is not None
    # it was not ready when it said so first
    assert startup.launched_at + startup.ready_s > script.up_at + 0.4
    assert script.paths()["/v1/completions"] == 2


def test_a_health_that_took_long_was_the_first_request(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "LATE_HEALTH_S", 0.5)
    script.flag, script.health_s = False, 1.2
    startup = _follow(script, 0.1, 0.1)
    assert startup.first_request_s is not None
    assert startup.first_request_s >= 1.2


@pytest.mark.parametrize(("running", "alone"), [(1, True), (2, False), (None, True)])
def test_a_first_request_beside_somebody_else_s_is_not_timed(running: int | None, alone: bool, script: Script) -> None:
    """A client that retries until the server is back sends the moment the port opens: our own request then waits for theirs."""
    script.running, script.completion_s = running, 1.0
    startup = _follow(script, 0.1, 0.1)
    assert startup.ready_s is not None
    assert (startup.first_request_s is not None) is alone
    assert startup.first_request_why == ("" if alone else "somebody else's requests were on the server during the first one")
