"""How a server is stopped: only when nobody else uses it, through its controller, and with proof that nothing of it is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_sglang.record import units
from pytest_sglang.record.values import Finding
from pytest_sglang.server.http import Load, Unreadable
from pytest_sglang.session.errors import Inconclusive

if TYPE_CHECKING:
    from pytest_sglang.gpu.held import Held
    from pytest_sglang.server.control import ControlState
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.hardware import Hardware

LOOK_EVERY_S = 2.0
"""Wall seconds between two looks at the load while others' requests are waited for: one small request each."""
AGAIN_S = 0.5
"""A server is quiet when two looks so far apart show nothing: one may fall between two requests of the same user."""
OWN_S = 5.0
"""Wall seconds for which a load is not held against anybody: SGLang counts a request of ours that was cut off a while longer."""
GPU_FREE_S = 60.0
"""Wall seconds after the end of the last process within which the cards must be free: the driver frees a killed tree's memory late."""
SETTLE_S = 3.0
"""Wall seconds for which a stop that was interrupted while it was asked for may still reach the service manager."""
STOP_LIMIT_S = 150.0
MEMORY_UNPROVED = "gpu-memory-unproved"
"""Kind of the finding that after a stop nothing can be compared: the proof is left out, and that is listed."""
MEMORY_UNREADABLE = "gpu-memory-unreadable"
"""Kind of the finding that neither processes nor memory of a card can be read after a stop: its check is inconclusive."""


def until_quiet(deployment: Deployment, *, never_ready: bool = False) -> None:
    """Back when no request runs or waits; others' are waited for up to --sglang-drain. Raises Inconclusive naming the counts.

    A server whose load cannot be read is not stopped: somebody may be using it. One that accepts no connection serves nobody, and
    neither does one that this run started and that has not become ready (``never_ready``), if it does not tell its load or has
    nothing but SGLang's own warm-up request, which runs before /health answers 200.
    """
    plane, begun, quiet = deployment.plane, time.monotonic(), False
    while True:
        load = plane.load()
        if isinstance(load, Load) and load.total == 0:
            if quiet:
                return
            quiet = True
            time.sleep(AGAIN_S)
            continue
        quiet = False
        if isinstance(load, Unreadable) and (never_ready or plane.refuses()):
            return
        if never_ready and isinstance(load, Load) and load.total == 1 and plane.health(10.0) != 200:
            return
        waited_s = time.monotonic() - begun
        limit_s = max(deployment.options.drain_s, OWN_S)
        if waited_s >= limit_s:
            raise Inconclusive(_busy(load, waited_s, deployment))
        deployment.progress(_waiting(load, waited_s, deployment.options.drain_s))
        time.sleep(min(LOOK_EVERY_S if deployment.options.drain_s else AGAIN_S, limit_s - waited_s))


def _waiting(load: Load | Unreadable, waited_s: float, drain_s: float) -> str:
    what = f"somebody else's requests to end ({load})" if isinstance(load, Load) else f"the load to be readable ({load.reason})"
    shown = f"{waited_s:.0f} s" if waited_s < 60 else units.duration(waited_s)
    return f"waiting for {what} · {shown}" + (f" of {units.duration(drain_s)}" if drain_s else "")


def _busy(load: Load | Unreadable, waited_s: float, deployment: Deployment) -> str:
    drained = f" after {units.duration(waited_s)} of waiting (--sglang-drain)" if deployment.options.drain_s else ""
    if isinstance(load, Unreadable):
        return (
            f"whether somebody else's requests run cannot be read{drained}: {load.reason}; the server is not stopped "
            "under them (it tells by /v1/loads, or by /metrics with --enable-metrics)"
        )
    hint = "" if deployment.options.drain_s else " (--sglang-drain=10m waits for them)"
    return f"somebody else's requests are on the server{drained}: {load}; it is not stopped under them{hint}"


def stop(deployment: Deployment, grace_s: float | None = None) -> tuple[Finding, ...]:
    """Stop through the controller and prove that no process lives, the port is free and the cards hold nothing of it.

    Gives what is off although it ended (it ignored SIGTERM; the cards could not be read). Raises ControlError naming what is left.
    """
    from pytest_sglang.server.control import ControlError

    controller = deployment.controller
    state = controller.state()
    held = _held(deployment, state)
    deployment.progress(f"stopping {controller.subject}")
    deployment.stop_asked = state
    begun = time.monotonic()
    try:
        controller.stop(deployment.stop_grace_s if grace_s is None else grace_s)
    except ControlError as error:
        if not error.under_way:
            deployment.stop_asked = None
        left = held.left() if held is not None else []
        raise ControlError(f"{error}; {'; '.join(left)}" if left else str(error), under_way=error.under_way) from None
    finally:
        deployment.progress(None)
    deployment.stop_asked = None
    found = _killed(deployment, time.monotonic() - begun)
    return (*found, *_cards_free(deployment, held)) if held is not None else found


def _held(deployment: Deployment, state: ControlState) -> Held | None:
    """What it holds on its cards; None where no cards are promised, or where they are another machine's."""
    from pytest_sglang.gpu.held import Held
    from pytest_sglang.gpu.readings import GpuLost
    from pytest_sglang.server import processes

    if deployment.hardware is None or not deployment.is_this_machine:
        return None
    listed = {each.pid for each in processes.tree(state.pid)} | processes.of_same_unit(state.pid)
    try:
        return Held(deployment.hardware.serving, listed, deployment.idle_levels)
    except GpuLost:
        return None  # the check of the cards says so


def _cards_free(deployment: Deployment, held: Held) -> tuple[Finding, ...]:
    from pytest_sglang.gpu.readings import GpuLost
    from pytest_sglang.server.control import ControlError

    deadline = time.monotonic() + deployment.gpu_free_s
    try:
        while (left := held.left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        if sure := held.left(sure=True) if left else []:
            raise ControlError(
                f"{deployment.controller.subject} was stopped, but its GPU memory is not free after "
                f"{deployment.gpu_free_s:.0f} s: {'; '.join(sure)}"
            )
        blind, unproved = held.blind(), [*left, *held.unproved()]
        if not unproved:
            deployment.idle_levels = held.levels()
    except GpuLost as lost:
        left, blind, unproved = [], [], [str(lost)]
    if not unproved:
        return ()
    detail = f"that its GPU memory is free after the stop is not proved: {'; '.join(unproved)}"
    if blind:
        remedy = 'waive it in the rig file: unavailable = ["processes"]'
        return (Finding(MEMORY_UNREADABLE, "warn", deployment.controller.subject, detail, remedy),)
    return (Finding(MEMORY_UNPROVED, "warn" if left else "info", deployment.controller.subject, detail),)


def levels(hardware: Hardware) -> dict[str, int]:
    """Bytes in use on each serving card (by UUID), other processes' aside, before a server of ours is started."""
    from pytest_sglang.gpu.held import Held
    from pytest_sglang.gpu.readings import GpuLost

    try:
        return Held(hardware.serving, ()).levels()
    except GpuLost:
        return {}


def _killed(deployment: Deployment, took_s: float) -> tuple[Finding, ...]:
    """A server that had to be killed: it ignores SIGTERM, or hangs, and every request on it is cut off."""
    if deployment.controller.state().result != "timeout":
        return ()
    detail = (
        f"it did not end on SIGTERM and was killed by SIGKILL: the stop took {units.duration(took_s)}, and cut off what ran on it"
    )
    remedy = "look at what it does on SIGTERM (a drain that never ends, a scheduler that hangs)"
    return (Finding("sigterm-ignored", "fail", deployment.controller.subject, detail, remedy),)


def wait_until_over(deployment: Deployment) -> ControlState:
    """The state once a stop that is under way has ended: asked for by a run that was interrupted in it, it goes on without the run."""
    asked, deadline = deployment.stop_asked, time.monotonic() + STOP_LIMIT_S
    settled = time.monotonic() + (SETTLE_S if asked is not None else 0.0)
    while True:
        state = deployment.controller.state()
        # where its owner cannot tell that it is stopping (a container), it has the grace that it was given
        telling = (
            state.stopping if state.stopping is not None or asked is None else time.monotonic() < deadline - STOP_LIMIT_S + 75.0
        )
        under_way = bool(telling) or time.monotonic() < settled
        replaced = asked is not None and state.pid is not None and state.pid != asked.pid
        if not state.active or replaced or not under_way or time.monotonic() > deadline:
            return state
        deployment.progress(f"waiting for {deployment.controller.subject} to end, to start it again")
        time.sleep(0.2)


def is_to_start(deployment: Deployment) -> bool:
    """Whether an owner's server must be started to run again: also while a stop outlasts the wait (TimeoutStopSec=infinity).

    A service manager keeps the start until the stop is over.
    """
    state = wait_until_over(deployment)
    return not state.active or bool(state.stopping)
