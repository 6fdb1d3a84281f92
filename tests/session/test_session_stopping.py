"""Stopping a server: never under somebody's requests, and never believed before the processes, the port and the cards show it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.gpu.held import Held, on_card
from pytest_sglang.gpu.readings import GpuProcess, Missing
from pytest_sglang.record.values import Finding
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.server.control import ControlError, ControlState
from pytest_sglang.server.http import Load, Unreadable
from pytest_sglang.session import ended, starting, stopping
from pytest_sglang.session.errors import Inconclusive
from pytest_sglang.session.server import SglangServer

GIB = 2**30
QUIET = Load(running=0, waiting=0)


class Plane:
    """Answers its loads one after the other, the last one for ever."""

    def __init__(self, *loads: Load | Unreadable, refuses: bool = False, health: int | None = 200) -> None:
        self.loads, self.asked, self._refuses, self._health = list(loads), 0, refuses, health

    def health(self, timeout_s: float) -> int | None:
        return self._health

    def load(self) -> Load | Unreadable:
        self.asked += 1
        return self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]

    def refuses(self) -> bool:
        return self._refuses


class Card:
    """A card whose readings a test sets."""

    def __init__(self, index: int, used: Any = GIB, processes: Any = ()) -> None:
        self.index, self.uuid, self.used, self.listed = index, f"GPU-{index}", used, processes

    def memory_used_bytes(self) -> Any:
        return self.used

    def process_name(self, pid: int) -> str:
        return "python"

    def processes(self) -> Any:
        return self.listed if isinstance(self.listed, Missing) else list(self.listed)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.events: list[Callable[[], None]] = []
        monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.01)
        for event in self.events:
            event()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Controller:
    subject, kind = "sglang.service", "systemd"

    def __init__(self, *states: ControlState, stop: Any = None) -> None:
        self.states, self._stop = list(states) or [ControlState(active=False)], stop

    def state(self) -> ControlState:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def stop(self, grace_s: float) -> None:
        if self._stop is not None:
            self._stop()


def deployment(
    plane: Plane | None = None, controller: Controller | None = None, cards: tuple[Card, ...] = (), drain_s: float = 0.0
) -> Any:
    told: list[str | None] = []
    return SimpleNamespace(
        plane=plane,
        controller=controller or Controller(),
        options=SimpleNamespace(drain_s=drain_s),
        hardware=SimpleNamespace(serving=cards) if cards else None,
        is_this_machine=True,
        progress=told.append,
        told=told,
        stop_grace_s=60.0,
        stop_asked=None,
        idle_levels={},
        gpu_free_s=10.0,
    )


# --- others' requests ------------------------------------------------------------------------------------------------------


def test_a_quiet_server_is_looked_at_twice(clock: Clock) -> None:
    plane = Plane(QUIET)
    stopping.until_quiet(deployment(plane))
    assert plane.asked == 2


@pytest.mark.parametrize("load", [Load(running=2, waiting=0), Load(running=0, waiting=3), Load(running=1, waiting=1)])
def test_requests_that_wait_count_as_well_as_those_that_run(clock: Clock, load: Load) -> None:
    with pytest.raises(
        Inconclusive, match=f"{load.running} running, {load.waiting} waiting; it is not stopped under them"
    ) as caught:
        stopping.until_quiet(deployment(Plane(load)))
    assert "--sglang-drain=10m" in str(caught.value)


def test_they_are_waited_for_as_long_as_asked_and_no_longer(clock: Clock) -> None:
    seen = deployment(Plane(Load(running=1, waiting=4)), drain_s=600.0)
    with pytest.raises(Inconclusive, match=r"after 10 min 00 s of waiting \(--sglang-drain\): 1 running, 4 waiting"):
        stopping.until_quiet(seen)
    assert clock.now == pytest.approx(700.0, abs=3)
    assert seen.plane.asked < 310, "a look every 2 s"
    assert seen.told[0] == "waiting for somebody else's requests to end (1 running, 4 waiting) · 0 s of 10 min 00 s"


def test_when_they_end_it_goes_on(clock: Clock) -> None:
    busy = [Load(running=1, waiting=0)] * 5
    seen = deployment(Plane(*busy, QUIET), drain_s=600.0)
    stopping.until_quiet(seen)
    assert clock.now < 115


def test_a_gap_between_two_requests_is_not_quiet(clock: Clock) -> None:
    gaps = [QUIET, Load(running=1, waiting=0)] * 100
    with pytest.raises(Inconclusive):
        stopping.until_quiet(deployment(Plane(*gaps, Load(running=1, waiting=0))))


def test_a_load_that_cannot_be_read_is_not_no_load(clock: Clock) -> None:
    unreadable = Unreadable("http://h/v1/loads: HTTP 401: an API key is needed")
    with pytest.raises(Inconclusive, match=r"cannot be read: http://h/v1/loads: HTTP 401.*not stopped under them"):
        stopping.until_quiet(deployment(Plane(unreadable)))
    with pytest.raises(Inconclusive, match="cannot be read after 60"):
        stopping.until_quiet(deployment(Plane(unreadable), drain_s=60.0))


def test_a_server_that_accepts_no_connection_serves_nobody(clock: Clock) -> None:
    stopping.until_quiet(deployment(Plane(Unreadable("refused"), refuses=True)))
    assert clock.now == 100.0


def test_one_that_never_became_ready_is_stopped_unless_it_tells_of_requests(clock: Clock) -> None:
    """A cold start that hangs with its port open: its caches must come back."""
    stopping.until_quiet(deployment(Plane(Unreadable("no answer within 5 s"))), never_ready=True)
    assert clock.now == 100.0
    with pytest.raises(Inconclusive, match="2 running, 0 waiting"):
        stopping.until_quiet(deployment(Plane(Load(running=2, waiting=0))), never_ready=True)


def test_the_warm_up_request_of_a_start_that_was_cut_off_is_nobody_s(clock: Clock) -> None:
    """Interrupted while SGLang warms up: the one request is its own, and must not keep the old caches aside."""
    warming = Load(running=1, waiting=0)
    stopping.until_quiet(deployment(Plane(warming, health=503)), never_ready=True)
    stopping.until_quiet(deployment(Plane(warming, health=None)), never_ready=True)
    assert clock.now == 100.0
    for plane, never_ready in ((Plane(warming, health=200), True), (Plane(warming, health=503), False)):
        with pytest.raises(Inconclusive, match="1 running, 0 waiting"):
            stopping.until_quiet(deployment(plane), never_ready=never_ready)
    with pytest.raises(Inconclusive, match="1 running, 1 waiting"):
        stopping.until_quiet(deployment(Plane(Load(running=1, waiting=1), health=503)), never_ready=True)


def test_a_request_of_ours_that_was_cut_off_is_given_its_moment(clock: Clock) -> None:
    stopping.until_quiet(deployment(Plane(*[Load(running=1, waiting=0)] * 4, QUIET)))
    assert clock.now < 104


# --- the cards -------------------------------------------------------------------------------------------------------------


def server(used: int, pid: int = 4711, ours: int | None = 20 * GIB) -> tuple[Card, ...]:
    return tuple(Card(index, used, [GpuProcess(pid, ours, "compute")]) for index in (0, 1))


def test_memory_that_a_process_keeps_is_told_with_pid_and_cards() -> None:
    cards = server(21 * GIB)
    held = Held(cards, [4711])  # type: ignore[arg-type]
    assert held.left() == ["pid 4711 (python) holds 20.0 GiB each on GPU 0, 1"]
    cards[0].listed = ()
    cards[0].used = GIB
    assert held.left() == ["pid 4711 (python) holds 20.0 GiB on GPU 1"]


def test_memory_that_nobody_shows_is_seen_by_the_level_before() -> None:
    cards = server(21 * GIB)
    held = Held(cards, [4711])  # type: ignore[arg-type]
    for card in cards:
        card.listed = ()
    assert held.left()[0] == "20.0 GiB of it are still taken on GPU 0, by no process that the driver shows"
    for card in cards:
        card.used = GIB + 100 * 2**20
    assert held.left() == []
    assert held.unproved() == []
    assert held.levels() == {"GPU-0": GIB + 100 * 2**20, "GPU-1": GIB + 100 * 2**20}


def test_another_s_memory_is_not_the_server_s() -> None:
    (card, _) = server(21 * GIB)
    card.listed = [GpuProcess(4711, 20 * GIB, "compute")]
    held = Held([card], [4711])  # type: ignore[list-item]
    card.listed, card.used = [GpuProcess(99, 12 * GIB, "compute")], 13 * GIB
    assert held.left() == []


def test_without_a_list_only_a_known_level_proves_anything() -> None:
    card = Card(3, 21 * GIB, Missing("Not Supported"))
    unknown = Held([card], [4711])  # type: ignore[list-item]
    assert unknown.left() == []
    assert unknown.unproved() == ["GPU 3: Not Supported"]
    known = Held([card], [4711], {"GPU-3": GIB})  # type: ignore[list-item]
    assert known.unproved() == []
    assert known.left() == ["20.0 GiB of it are still taken on GPU 3, by no process that the driver shows"]
    assert known.left(sure=True) == [], "it may be somebody else's: the driver hides whose"
    assert Held([Card(0, 21 * GIB)], [4711]).unproved() == ["GPU 0: the driver showed none of its processes before the stop"]  # type: ignore[list-item]


def test_a_driver_that_hides_sizes_still_shows_the_process() -> None:
    card = Card(0, 21 * GIB, [GpuProcess(4711, None, "compute")])
    held = Held([card], [4711])  # type: ignore[list-item]
    assert held.left() == ["pid 4711 (python) holds memory on GPU 0"]
    card.listed = ()
    assert held.left() == []
    assert on_card(card, frozenset({1})).ours == {}  # type: ignore[arg-type]


# --- a stop ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's tree is pid 4711."""
    from pytest_sglang.server import processes

    monkeypatch.setattr(processes, "tree", lambda pid: [SimpleNamespace(pid=pid)])
    monkeypatch.setattr(processes, "of_same_unit", lambda pid: set())


RUNNING, ENDED = ControlState(active=True, pid=4711), ControlState(active=False, result="success")


@pytest.mark.usefixtures("listed")
def test_a_stop_waits_until_the_driver_has_freed_the_memory(clock: Clock) -> None:
    cards = server(21 * GIB)
    seen = deployment(controller=Controller(RUNNING, ENDED), cards=cards)

    def free_later() -> None:
        if clock.now > 105:
            for card in cards:
                card.listed, card.used = (), GIB

    clock.events.append(free_later)
    assert stopping.stop(seen) == ()
    assert 105 < clock.now < 106
    assert seen.idle_levels == {"GPU-0": GIB, "GPU-1": GIB}
    assert seen.stop_asked is None


@pytest.mark.usefixtures("listed")
def test_memory_that_stays_fails_the_stop(clock: Clock) -> None:
    seen = deployment(controller=Controller(RUNNING, ENDED), cards=server(21 * GIB))
    with pytest.raises(
        ControlError, match=r"GPU memory is not free after 10 s: pid 4711 \(python\) holds 20.0 GiB each on GPU 0, 1"
    ):
        stopping.stop(seen)


@pytest.mark.usefixtures("listed")
def test_a_survivor_is_told_with_what_it_holds(clock: Clock) -> None:
    def survives() -> None:
        raise ControlError("sglang.service was stopped, but still alive after 20 s: pid 4711 (sglang::scheduler)", under_way=True)

    seen = deployment(controller=Controller(RUNNING, stop=survives), cards=server(21 * GIB))
    with pytest.raises(ControlError, match=r"pid 4711 \(sglang::scheduler\); pid 4711 \(python\) holds 20.0 GiB each on GPU 0, 1"):
        stopping.stop(seen)
    assert seen.stop_asked == RUNNING, "it may still be under way"


@pytest.mark.usefixtures("listed")
def test_what_is_not_proved_is_said(clock: Clock) -> None:
    seen = deployment(controller=Controller(RUNNING, ENDED), cards=(Card(0, Missing("no"), Missing("no")),))
    (finding,) = stopping.stop(seen)
    assert (finding.kind, finding.severity) == ("gpu-memory-unreadable", "warn")
    assert "GPU 0: no; no" in finding.detail
    seen = deployment(controller=Controller(RUNNING, ENDED), cards=(Card(0, 21 * GIB, ()),))
    (finding,) = stopping.stop(seen)
    assert (finding.kind, finding.severity) == ("gpu-memory-unproved", "info")
    # a level after a stop of which nothing is known proves nothing of the next one
    assert seen.idle_levels == {}


@pytest.mark.usefixtures("listed")
def test_readings_that_are_gone_after_the_stop_prove_nothing(clock: Clock) -> None:
    """Seen before the stop, hidden after it: what cannot be seen is not gone."""
    (card, _) = server(21 * GIB)

    def hides() -> None:
        card.used, card.listed = Missing("Unknown Error"), Missing("Unknown Error")

    seen = deployment(controller=Controller(RUNNING, ENDED, stop=hides), cards=(card,))
    (finding,) = stopping.stop(seen)
    assert finding.kind == "gpu-memory-unreadable"


@pytest.mark.usefixtures("listed")
def test_an_empty_card_is_proof_where_the_driver_hides_whose_processes_those_are(clock: Clock) -> None:
    """In a container: no process is shown, before and after."""
    card = Card(0, 21 * GIB, ())

    def ends() -> None:
        card.used = 600 * 2**20

    seen = deployment(controller=Controller(RUNNING, ENDED, stop=ends), cards=(card,))
    assert stopping.stop(seen) == ()
    assert seen.idle_levels == {"GPU-0": 600 * 2**20}


@pytest.mark.parametrize(
    ("kind", "waived", "verdict", "left_out"),
    [
        ("gpu-memory-unreadable", False, "inconclusive", False),
        ("gpu-memory-unreadable", True, None, True),
        ("gpu-memory-unproved", False, None, True),
    ],
)
def test_a_stop_that_is_not_proved_is_no_silent_pass_of_its_check(
    kind: str, waived: bool, verdict: str | None, left_out: bool
) -> None:
    finding = Finding(kind, "warn", "sglang.service", "not proved: GPU 0: no", "waive it")
    seen: Any = SimpleNamespace(
        rig=SimpleNamespace(unavailable=frozenset({"processes"} if waived else ())),
        recorder=SimpleNamespace(findings=lambda found: None),
        scope=SimpleNamespace(stops=[], left_out={}),
    )
    SglangServer(seen, ServerPromise(url="http://127.0.0.1:1"))._tell_stop((finding,))
    assert [each.verdict for each in starting.stopped(seen.scope.stops)] == ([verdict] if verdict else [])
    assert ("gpu-memory-after-stop" in seen.scope.left_out) is left_out


@pytest.mark.usefixtures("listed")
def test_more_memory_of_nobody_knows_whom_is_told_and_no_failure(clock: Clock) -> None:
    seen = deployment(controller=Controller(RUNNING, ENDED), cards=(Card(0, 21 * GIB, ()),))
    seen.idle_levels = {"GPU-0": GIB}
    (finding,) = stopping.stop(seen)
    assert (finding.kind, finding.severity) == ("gpu-memory-unproved", "warn")
    assert "20.0 GiB of it are still taken on GPU 0" in finding.detail
    assert clock.now > 109, "it was given its time"
    assert seen.idle_levels == {"GPU-0": GIB}


def test_a_server_that_had_to_be_killed_is_a_finding(clock: Clock) -> None:
    seen = deployment(controller=Controller(RUNNING, ControlState(active=False, result="timeout")))
    (finding,) = stopping.stop(seen)
    assert isinstance(finding, Finding)
    assert (finding.kind, finding.severity) == ("sigterm-ignored", "fail")


# --- a stop that the run was interrupted in --------------------------------------------------------------------------------


def stopping_state(pid: int | None = 4711, stopping: bool | None = True) -> ControlState:
    return ControlState(active=True, pid=pid, stopping=stopping)


def interrupted(*states: ControlState) -> Any:
    seen = deployment(controller=Controller(*states))
    seen.stop_asked = RUNNING
    return seen


def test_an_interrupted_stop_is_waited_for(clock: Clock) -> None:
    assert stopping.wait_until_over(interrupted(*[stopping_state()] * 50, ENDED)) == ENDED


def test_a_stop_that_has_not_arrived_yet_is_waited_for_a_moment(clock: Clock) -> None:
    states = [*[stopping_state(stopping=False)] * 5, *[stopping_state()] * 9, ENDED]
    assert stopping.wait_until_over(interrupted(*states)) == ENDED
    assert stopping.wait_until_over(interrupted(stopping_state(stopping=False))).active, "it was never stopped"
    assert clock.now < 110


def test_an_owner_that_does_not_tell_has_the_grace_that_it_was_given(clock: Clock) -> None:
    assert stopping.wait_until_over(interrupted(*[stopping_state(stopping=None)] * 100, ENDED)) == ENDED


def test_another_process_is_not_the_one_that_was_stopped(clock: Clock) -> None:
    assert stopping.wait_until_over(interrupted(stopping_state(pid=4712, stopping=False))).pid == 4712
    assert clock.now == 100.0


def test_without_a_stop_nothing_is_waited_for(clock: Clock) -> None:
    assert stopping.wait_until_over(deployment(controller=Controller(RUNNING))) == RUNNING
    assert clock.now == 100.0


# --- as it was found ---------------------------------------------------------------------------------------------------------


class Starts(Controller):
    started = 0

    def start(self) -> None:
        self.started += 1


def put_back(*states: ControlState, aside: list[str]) -> tuple[Any, Starts, list[str]]:
    """A run that has stopped its owner's server and ends."""
    seen, owner, resolved = interrupted(), Starts(*states), []
    seen.journal = SimpleNamespace(resolve=lambda entry, why: resolved.append(entry))
    seen.stopped_entry, seen.started_entry, seen.kernels = SimpleNamespace(id="stopped"), None, SimpleNamespace(aside=aside)
    seen.controller = seen._controller = owner
    seen.not_put_back = lambda subject, detail: seen.told.append(detail)
    ended.as_found(seen, owner)
    return seen, owner, resolved


def test_a_stop_that_outlasts_the_wait_is_followed_by_a_start(clock: Clock) -> None:
    """TimeoutStopSec=infinity: an active unit that is being stopped is no server that was started again."""
    _, owner, resolved = put_back(stopping_state(), aside=[])
    assert clock.now > 240
    assert (owner.started, resolved) == (1, ["stopped"])


def test_a_server_waits_for_caches_that_could_not_be_put_back(clock: Clock) -> None:
    """Resolved, its stop would be forgotten: whoever undoes the rest stops it for the caches, and would not start it again."""
    seen, owner, resolved = put_back(ENDED, aside=["moved"])
    assert (owner.started, resolved) == (0, [])
    assert "started when its caches are back" in seen.told[-1]
    assert seen.stopped_entry is not None
