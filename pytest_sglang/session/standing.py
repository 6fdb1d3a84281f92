"""The rig as it stands: power limits, server, caches, read and not assumed. Taken before a run and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sglang.gpu.readings import GpuLost, value_or_none

if TYPE_CHECKING:
    from pytest_sglang.gpu.card import Card
    from pytest_sglang.session.deployment import Deployment


def read(deployment: Deployment) -> dict[str, Any]:
    """Limits by GPU, the server's state and pid, caches still set aside. Every part that cannot be read says why."""
    state: dict[str, Any] = {}
    if deployment.hardware is not None:
        state["power_limits_w"] = {str(card.index): _limit(card) for card in deployment.hardware.present}
    if deployment.rig.server is not None:
        try:
            control = deployment.controller.state()
            state["server"] = {
                "subject": deployment.controller.subject,
                "kind": deployment.controller.kind,
                "active": control.active,
                "pid": control.pid,
                "health": deployment.plane.health() if control.active else None,
                "detail": control.detail,
                "run_owned": deployment.controller.run_owned,
            }
        except Exception as error:
            state["server"] = {"subject": deployment.controller.subject, "unreadable": f"{type(error).__name__}: {error}"}
        state["caches_aside"] = [str(moved.original) for _, moved in deployment.kernels.aside]
    return state


def _limit(card: Card) -> float | str | None:
    try:
        return value_or_none(card.limits().enforced_w)
    except GpuLost as error:
        return str(error)
