"""``pytest-sglang measure``: closed-loop requests at any OpenAI-compatible server, and what they were like. Changes nothing.

Each figure by docs/definitions.md. What the server cannot tell is said, never guessed.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_sglang.judge import counts
from pytest_sglang.load.answer import Api
from pytest_sglang.load.client import Client, ConnectError, Target
from pytest_sglang.load.figures import Figures, figures
from pytest_sglang.load.measure import FOREIGN, Watch
from pytest_sglang.load.prompts import Kind
from pytest_sglang.load.rounds import Exchange
from pytest_sglang.record.values import Value
from pytest_sglang.session.counters import TokenCounter
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.tokenizing import Tokenizer

if TYPE_CHECKING:
    from pytest_sglang.server.http import ControlPlane

WARM_UP_TOKENS = 16
FOREIGN_POLL_S = 0.5
_RATE_OVER_S = 2.0


class Workload(Value, frozen=True, kw_only=True):
    """What is asked of the server: ``requests`` in all, ``streams`` at a time, each of exactly ``tokens`` output tokens."""

    url: str
    api: Api = "completions"
    model: str | None = None
    api_key: str | None = None
    streams: int = 1
    tokens: int = 128
    requests: int = 8
    prompt_tokens: int = 64
    prompts: Kind = "unique"
    seed: int = 0
    timeout_s: float = 300.0
    verify_tls: bool = True

    def __repr__(self) -> str:
        """Without the key: a value ends up in messages sooner or later."""
        return f"Workload({self.url!r}, {self.api}, {self.requests} requests, {self.streams} streams)"


class Progress(Value, frozen=True, kw_only=True):
    """How far it is: requests ended, failed among them, tokens arrived, tokens a second over the last two seconds."""

    done: int
    failed: int
    requests: int
    tokens: int
    tok_s: float | None


class Measured(Value, frozen=True, kw_only=True):
    """The figures, and what they can be trusted with. ``inconclusive``: why they must not be, ``unknown``: what the server does not tell."""

    workload: Workload
    model: str | None
    figures: Figures
    inconclusive: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    server_tokens: int | None = None
    prompt_tokens_exact: bool = True
    interrupted: bool = False
    first_request_s: float | None = None
    """From ``began`` to the first request."""

    def plain(self) -> dict[str, Any]:
        """For JSON: the figures on the top level, without the key."""
        workload = {name: value for name, value in _plain(self.workload).items() if name not in ("api_key", "model")}
        rest = {name: value for name, value in _plain(self).items() if name not in ("workload", "figures")}
        return {**_plain(self.figures), **rest, "workload": workload}


def measure(
    workload: Workload, show: Callable[[Progress], None], *, began: float | None = None, timeout_s: float = 10.0
) -> Measured:
    """Measure. Ctrl-C ends it with what there is (``interrupted``). ``began``: time.monotonic() at which the caller started.

    Raises Refused where the server does not answer, wants a key, serves another model, or cannot be asked so.
    """
    from pytest_sglang.server.http import ControlPlane

    try:
        url = Target(url=workload.url, api=workload.api).base()
    except ValueError as error:
        raise Refused(str(error)) from None
    began = time.monotonic() if began is None else began
    with ControlPlane(url, workload.api_key, timeout_s, verify_tls=workload.verify_tls) as plane:
        model, unknown = _served(plane, workload)
        target = Target(url=url, api=workload.api, model=model, api_key=workload.api_key, verify_tls=workload.verify_tls)
        session = _Session(workload, target, plane, show, began)
        session.run()
    return session.measured(model, unknown)


class Place(Value, frozen=True, kw_only=True):
    """Where the server is that is to be measured."""

    url: str
    api_key: str | None = None
    simulated: bool = False


@contextmanager
def target(url: str | None, rig: str | None, faults: tuple[str, ...], api_key_env: str | None) -> Iterator[Place]:
    """The server at ``url``, or the rig file's, or a simulated rig's that lives as long as the block. Raises Refused, RigError."""
    if url is not None:
        if rig is not None or faults:
            raise Refused("either a URL or --rig: a rig file names its own server")
        yield Place(url=url, api_key=_key(api_key_env))
        return
    from pytest_sglang.session import promise, simulated
    from pytest_sglang.session.options import RunOptions

    options = RunOptions(rootdir=Path.cwd(), rig=rig, faults=faults)
    if not promise.named(options):
        raise Refused("which server? write e.g. pytest-sglang measure http://127.0.0.1:30000, or name a rig file: --rig rig.toml")
    if faults and not options.simulated:
        raise Refused("--fault is for the simulated rig only: add --rig=simulated")
    promised = promise.resolve(options)
    if promised.server is None:
        raise Refused(f"{promised.path}: no [server] table (name the server: pytest-sglang measure http://127.0.0.1:30000)")
    if not options.simulated:
        yield Place(url=promised.server.url, api_key=_key(api_key_env or promised.server.api_key_env))
        return
    from pytest_sglang.session.journal import Journal
    from pytest_sglang.session.state import Owner, state_dir

    journal = Journal(state_dir(), Owner.me("measure"))
    simulation = None
    try:
        simulation = simulated.open_rig(options, journal, lambda text: None)
        yield Place(url=simulation.rig.url, simulated=True)
    finally:
        if simulation is not None:
            simulation.close(journal)
        journal.close()


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise Refused(f"--api-key-env {variable}: that variable is not set (export {variable}=...)")
    return os.environ[variable]


class _Session:
    """One measurement under way: everything that has ended so far is in ``exchanges``."""

    def __init__(
        self, workload: Workload, target: Target, plane: ControlPlane, show: Callable[[Progress], None], began: float
    ) -> None:
        self.workload, self.target, self.plane, self.show, self.began = workload, target, plane, show, began
        self.tokenizer = Tokenizer(plane)
        self.exchanges: list[Exchange] = []
        self.inconclusive: list[str] = []
        self.server_tokens: int | None = None
        self.accept_length: float | None = None
        self.foreign_known = False
        self.first_request_s: float | None = None
        self.interrupted = False
        self._ticks: deque[tuple[float, int]] = deque()

    def run(self) -> None:
        """Warm up, send everything, hold the tokens against the server's counter."""
        work = self.workload
        try:
            with Client(self.target, 1) as client:
                self._warm_up(client)
            prompts = self.tokenizer.prompts(work.requests, work.prompt_tokens, work.seed, work.prompts)
            counter = TokenCounter(self.plane.metrics)
            counter.begin()
            with self._watched(), Client(self.target, min(work.streams, work.requests)) as client:
                client.run(prompts, work.tokens, timeout_s=work.timeout_s, on_exchange=self._ended, on_tick=self._tick)
                if client.clock_step is not None:
                    self.inconclusive.append(client.clock_step)
            self._compare(counter)
        except ConnectError as error:
            raise Refused(f"{work.url} takes no connection: {error}") from None
        except ValueError as error:
            raise Refused(str(error)) from None
        except KeyboardInterrupt:
            self.interrupted = True

    def _warm_up(self, client: Client) -> None:
        """One short request, so that nothing is measured that a first request alone would cost; it fails like any other."""
        work = self.workload
        prompt = self.tokenizer.prompts(1, work.prompt_tokens, work.seed + 1, work.prompts)
        client.connect()
        self.first_request_s = time.monotonic() - self.began
        first = client.run(prompt, min(WARM_UP_TOKENS, work.tokens), timeout_s=work.timeout_s)[0]
        self.tokenizer.learn(first.prompt_characters, first.answer.prompt_tokens)
        if first.answer.failure is not None:
            self._ended(first)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Looks meanwhile whether the server has requests that are not ours."""
        self.foreign_known = self.plane.running_requests() is not None
        own = min(self.workload.streams, self.workload.requests)
        with Watch(self.plane.running_requests, own, FOREIGN_POLL_S) as watch:
            yield
        if watch.disturbed:
            self.inconclusive.append(f"{FOREIGN}: the server had more requests than these")

    def _compare(self, counter: TokenCounter) -> None:
        measured = [each for each in self.exchanges if each.answer.failure is None]
        if len(measured) < len(self.exchanges):
            # what became of a failed request's tokens nobody knows
            return
        own = sum(each.answer.tokens for each in measured)
        self.server_tokens = counter.gained(own)
        self.accept_length = counter.accept_length
        wrong = counts.miscounted(own, self.server_tokens)
        if wrong is not None:
            self.inconclusive.append(wrong)

    def _ended(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    def _tick(self, tokens: int) -> None:
        now = time.monotonic()
        self._ticks.append((now, tokens))
        while now - self._ticks[0][0] > _RATE_OVER_S:
            self._ticks.popleft()
        seconds, gained = now - self._ticks[0][0], tokens - self._ticks[0][1]
        failed = sum(each.answer.failure is not None for each in self.exchanges)
        rate = gained / seconds if seconds > 0 else None
        done = len(self.exchanges)
        self.show(Progress(done=done, failed=failed, requests=self.workload.requests, tokens=tokens, tok_s=rate))

    def measured(self, model: str | None, unknown: Sequence[str]) -> Measured:
        """What there is by now."""
        found = figures(self.exchanges)
        if found.accept_length is None:
            found = msgspec.structs.replace(found, accept_length=self.accept_length)
        told = list(unknown)
        if not self.tokenizer.exact:
            told.append("prompt lengths before they are sent (no /tokenize): estimated, the usage tells the true ones")
        if self.server_tokens is None and not found.failed_requests and not self.interrupted:
            told.append("the server's own token counter (no /metrics, or not SGLang's: --enable-metrics)")
        if not self.foreign_known and not self.interrupted:
            told.append("whether others use the server meanwhile (no /v1/loads)")
        if found.clock == "events":
            told.append(
                "the token count at each event (no continuous usage): the events are the clock, only the last tells a count"
            )
        return Measured(
            workload=self.workload,
            model=model,
            figures=found,
            inconclusive=tuple(self.inconclusive),
            unknown=tuple(told),
            server_tokens=self.server_tokens,
            prompt_tokens_exact=self.tokenizer.exact,
            interrupted=self.interrupted,
            first_request_s=self.first_request_s,
        )


def _served(plane: ControlPlane, workload: Workload) -> tuple[str | None, list[str]]:
    """The model's name for the requests, and what could not be learned. Raises Refused."""
    from pytest_sglang.server.http import Unreachable

    try:
        answer = plane.request("GET", "/v1/models")
    except Unreachable as error:
        raise Refused(f"no server answers: {error}") from None
    if answer.status in (401, 403):
        given = "the API key is not the server's" if workload.api_key else "it wants an API key (--api-key-env NAME, its variable)"
        raise Refused(f"{plane.url}/v1/models: HTTP {answer.status}: {given}")
    names = _names(answer.body) if answer.status == 200 else []
    if not names:
        return workload.model, [f"the served models (/v1/models: HTTP {answer.status}, no list of models)"]
    if workload.model is not None and workload.model not in names:
        # SGLang answers whatever model is asked of it, and echoes the wrong name
        raise Refused(f"--model {workload.model}: {plane.url} serves {', '.join(names)}")
    return workload.model or names[0], []


def _names(body: str) -> list[str]:
    try:
        data = msgspec.json.decode(body).get("data")
        return [str(each["id"]) for each in data]
    except (msgspec.MsgspecError, AttributeError, KeyError, TypeError):
        return []


def _plain(value: Value) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(value)
    return found
