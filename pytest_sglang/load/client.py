"""The measuring client: one thread, N connections, every connection open before the clock starts.

Definitions: pytest_sglang.load.rounds. Where the time stamps come from: pytest_sglang.load.stamps.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from pytest_sglang.load import rounds, stamps
from pytest_sglang.load.connection import ConnectError, Connection, Target
from pytest_sglang.load.prompts import Prompt
from pytest_sglang.load.rounds import Exchange
from pytest_sglang.load.stamps import ClockWatch
from pytest_sglang.record.values import Round

__all__ = ["Client", "ConnectError", "Prompt", "Target", "run_round"]

CONNECT_TIMEOUT_S = 10.0
_LOOK_AT_DEADLINES_S = 0.25
_NOT_WAITED_NS = 20_000


class _Work:
    """The requests of one ``run``: waiting, under way, done."""

    def __init__(
        self,
        requests: Iterable[tuple[int, Prompt, bytes]],
        output_tokens: int,
        timeout_s: float,
        on_exchange: Callable[[Exchange], None] | None,
        on_tick: Callable[[int], None] | None,
    ) -> None:
        self.waiting = deque(requests)
        self.busy: dict[Connection, tuple[int, Prompt]] = {}
        self.done: dict[int, Exchange] = {}
        self.output_tokens, self.timeout_s = output_tokens, timeout_s
        self._on_exchange, self._on_tick = on_exchange, on_tick
        self._tokens = 0

    def settle(self, connection: Connection, stream: int, wakes_ns: Sequence[int]) -> None:
        """``connection`` has finished its request."""
        number, prompt = self.busy.pop(connection)
        self._tokens += connection.reader.tokens
        self.end(number, rounds.exchange(connection, prompt, stream=stream, wakes_ns=wakes_ns))

    def tick(self) -> None:
        """A moment has passed."""
        if self._on_tick is not None:
            self._on_tick(self._tokens + sum(each.reader.tokens for each in self.busy))

    def end(self, number: int, exchange: Exchange) -> None:
        """Request ``number`` has ended so."""
        self.done[number] = exchange
        if self._on_exchange is not None:
            self._on_exchange(exchange)


class Client:
    """``streams`` connections to one server, each busy with one request at a time (closed loop: a free stream sends at once).

    A context manager that owns its sockets. ``connect`` opens them, so that no connection is made while something is measured; a
    server that closes one after an answer costs a new one before the next request's clock starts.
    """

    def __init__(self, target: Target, streams: int, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        if streams < 1:
            raise ValueError(f"{streams} streams: at least 1")
        self.target, self.streams = target, streams
        self._connect_timeout_s = connect_timeout_s
        self._connections: list[Connection] = []
        self._selector = selectors.DefaultSelector()
        self._wakes = stamps.WakeLag()
        self.clock_step: str | None = None
        """Why the times of the last ``run`` cannot be trusted: the machine's clock was set meanwhile."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every socket; what is still being answered is abandoned."""
        for connection in self._connections:
            connection.close()
        self._connections = []
        self._selector.close()

    def connect(self) -> None:
        """Open the connections that are not. Raises ConnectError; ValueError for a url that is none."""
        for each in self._connections:
            if each.stale:
                each.close()
        self._connections = [each for each in self._connections if each.open]
        while len(self._connections) < self.streams:
            self._connections.append(Connection(self.target, self._connect_timeout_s))

    @property
    def stamps(self) -> Literal["kernel", "user"]:
        """Where the arrival times come from."""
        kernel = bool(self._connections) and all(each.kernel_stamps for each in self._connections)
        return "kernel" if kernel else "user"

    def run(
        self,
        prompts: Iterable[Prompt],
        output_tokens: int,
        *,
        timeout_s: float,
        on_exchange: Callable[[Exchange], None] | None = None,
        on_tick: Callable[[int], None] | None = None,
    ) -> list[Exchange]:
        """Send every prompt, asking for exactly ``output_tokens`` tokens each: one Exchange a prompt, in their order.

        Never raises for what a server does with a request: one that did not end whole has a failure. ``timeout_s`` is each
        request's own. ``on_tick`` gets the tokens that have arrived so far, four times a second. Raises ConnectError where not even
        the first connections can be made.
        """
        self.connect()
        clock, self.clock_step = ClockWatch(), None
        self._wakes = stamps.WakeLag()
        requests = [(number, each, self.target.request(each.text, output_tokens, each.ids)) for number, each in enumerate(prompts)]
        work = _Work(requests, output_tokens, timeout_s, on_exchange, on_tick)
        try:
            for connection in list(self._connections):
                self._next_request(connection, work)
            for connection in self._finished(work, clock):
                self._settle(connection, work)
                self._next_request(connection, work)
        finally:
            clock.look()
            self.clock_step = clock.step
            for connection in work.busy:
                self._unregister(connection)
                connection.close()
        return [work.done[number] for number in sorted(work.done)]

    def _next_request(self, connection: Connection, work: _Work) -> None:
        """Give ``connection`` something to do; requests that end at once (a dead server) are settled here."""
        while work.waiting:
            number, prompt, request = work.waiting.popleft()
            try:
                connection = self._alive(connection)
            except ConnectError as error:
                work.end(number, rounds.unsent(prompt, str(error)))
                continue
            work.busy[connection] = (number, prompt)
            connection.wakes_before = len(self._wakes.late_ns)
            connection.begin(request, work.output_tokens, work.timeout_s)
            if not connection.finished:
                self._selector.register(connection.sock, _wanted(connection), connection)
                return
            self._settle(connection, work)

    def _settle(self, connection: Connection, work: _Work) -> None:
        work.settle(connection, self._connections.index(connection), self._wakes.late_ns[connection.wakes_before :])

    def _finished(self, work: _Work, clock: ClockWatch) -> Iterator[Connection]:
        """Waits for bytes, hands them to their connections, and gives each connection whose request has ended."""
        busy = work.busy
        looked_s, polled_ns = time.monotonic(), stamps.now_ns()
        own_stamps = self.stamps == "user"
        while busy:
            timeout_s = self._wakes.timeout_s() if own_stamps else _LOOK_AT_DEADLINES_S
            asked_ns = stamps.now_ns()
            ready = self._selector.select(timeout_s)
            woken_ns = stamps.now_ns()
            if own_stamps:
                self._wakes.woken(woken_ns)
            # bytes found by a poll that did not wait may lie there since the poll before it
            since_ns = polled_ns if woken_ns - asked_ns < _NOT_WAITED_NS else woken_ns
            polled_ns = woken_ns
            for key, mask in ready:
                connection: Connection = key.data
                if mask & selectors.EVENT_WRITE:
                    connection.writable()
                    if not connection.finished:
                        self._selector.modify(connection.sock, _wanted(connection), connection)
                if mask & selectors.EVENT_READ:
                    connection.readable(since_ns)
                if connection.finished:
                    self._unregister(connection)
                    yield connection
            now_s = time.monotonic()
            if now_s - looked_s >= _LOOK_AT_DEADLINES_S:
                looked_s = now_s
                clock.look()
                work.tick()
                for connection in [each for each in busy if now_s >= each.deadline_s]:
                    self._unregister(connection)
                    connection.give_up("no whole answer in time")
                    yield connection

    def _alive(self, connection: Connection) -> Connection:
        """``connection``, or a fresh one in its place. Raises ConnectError."""
        if not connection.stale:
            return connection
        connection.close()
        fresh = Connection(self.target, self._connect_timeout_s)
        self._connections = [fresh if each is connection else each for each in self._connections]
        return fresh

    def _unregister(self, connection: Connection) -> None:
        try:
            self._selector.unregister(connection.sock)
        except (KeyError, ValueError):
            return


def _wanted(connection: Connection) -> int:
    return selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)


def run_round(
    target: Target,
    prompts: Sequence[Prompt],
    output_tokens: int,
    *,
    index: int,
    timeout_s: float,
    on_request: Callable[[dict[str, Any]], None] | None = None,
) -> Round:
    """One round: all ``prompts`` at once, a stream each, exactly ``output_tokens`` tokens each. What a server does never raises.

    ``on_request`` gets every request's raw events as plain data, after the round (``Exchange.raw``). Raises ValueError for a url
    that is none and for no prompts.
    """
    if not prompts:
        raise ValueError("a round without prompts")
    with Client(target, len(prompts)) as client:
        try:
            exchanges = client.run(prompts, output_tokens, timeout_s=timeout_s)
        except ConnectError as error:
            exchanges = [rounds.unsent(each, str(error)) for each in prompts]
        source, step = client.stamps, client.clock_step
    if on_request is not None:
        for number, each in enumerate(exchanges):
            on_request(each.raw(round_index=index, number=number, stamps=source))
    return rounds.make_round(index, exchanges, clock_step=step)
