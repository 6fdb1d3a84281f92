"""At the end of a run its server is as it was found: started again where it was stopped, stopped where it was started."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_sglang.session import stopping
from pytest_sglang.session.errors import Inconclusive

if TYPE_CHECKING:
    from pytest_sglang.server.control import Controller
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.journal import Entry


def as_found(deployment: Deployment, controller: Controller | None) -> None:
    """Put the server back; what cannot be is told in the record. ``controller`` None: the run never looked at it."""
    if controller is None:
        return
    if deployment.started_entry is not None and deployment.stopped_entry is None:
        _stop_again(deployment, deployment.started_entry)
        deployment.started_entry = None
    if deployment.stopped_entry is None:
        return
    if "kernels" in deployment.__dict__ and deployment.kernels.aside:
        deployment.not_put_back(controller.subject, "it is started when its caches are back, by the guard or by pytest-sglang undo")
        return
    if stopping.is_to_start(deployment):
        if "server" in deployment.__dict__:
            deployment.server.launches.append((deployment.clock.time(), "put back at the end", ""))
        controller.start()
        _settle(controller)
    if not controller.state().active:
        deployment.not_put_back(controller.subject, f"it was running before and is not now: {controller.state().detail}")
        return
    deployment.journal.resolve(deployment.stopped_entry.id, "started again")
    deployment.stopped_entry = None


def _stop_again(deployment: Deployment, entry: Entry) -> None:
    """The server was found inactive and this run has started it; it stays where somebody has begun to use it."""
    try:
        stopping.until_quiet(deployment, never_ready=deployment.server.starting)
    except Inconclusive as busy:
        deployment.journal.resolve(entry.id, f"left running: {busy}")
        deployment.not_put_back(deployment.controller.subject, f"it was not running before and is left running: {busy}")
        return
    deployment.recorder.findings(stopping.stop(deployment))
    deployment.journal.resolve(entry.id, "stopped again, as it was found")


def _settle(controller: Controller) -> None:
    """Give a just started unit a moment to have a process, so that reading back tells the truth."""
    for _ in range(20):
        if controller.state().active:
            return
        time.sleep(0.1)
