"""One start as its caches saw it: what was there before, when the server was ready, and after its first requests."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from pytest_sglang.cache import diff, integrity
from pytest_sglang.cache.snapshot import PlaceSnapshot, Snapshot
from pytest_sglang.record.values import CacheDiff, Startup
from pytest_sglang.session import past, starting
from pytest_sglang.session.past import Basis, Past

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment

FIRST_REQUESTS = 2
FIRST_TOKENS = 16
"""Requests and their tokens after which compilation is looked for once more: what a ready server still compiles, its users wait for."""

_SWITCHES = {
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": ("1", "true"),
    "TORCH_COMPILE_FORCE_DISABLE_CACHES": ("1", "true"),
    "TORCHINDUCTOR_FX_GRAPH_CACHE": ("0", "false"),
    "TORCHINDUCTOR_AUTOGRAD_CACHE": ("0", "false"),
    "TRITON_ALWAYS_COMPILE": ("1", "true", "on", "yes", "y"),
}
"""Variables that keep a cache from being used. Sources: torch 2.11 compiler/config.py, _inductor/config.py, _functorch/config.py,
triton 3.6 knobs.py."""


class Watched:
    """Made when the server is stopped and about to be started."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment, self._kernels = deployment, deployment.kernels
        self._known = past.recall(deployment)
        self._basis = self._kernels.last_basis or self._known.basis
        self._kernels.relocate()
        self._before = self._kernels.snapshot()
        self._began_s = time.time()
        self._broken = tuple(integrity.problems(self._before, sample=INTEGRITY_SAMPLE))

    def ended(self, startup: Startup) -> Startup:
        """The start with all that it compiled, first requests included, and why; remembered for the next one."""
        kernels, deployment = self._kernels, self._deployment
        kernels.relocate()
        for _ in range(FIRST_REQUESTS):
            deployment.plane.complete(FIRST_TOKENS)
        after = kernels.snapshot(self._before)
        before = self._extended(after)
        late = None if startup.ready_s is None else diff.since(after, self._wall(startup.launched_at + startup.ready_s))
        startup = msgspec.structs.replace(startup, cache_diff=diff.added(before, after), after_ready=late)
        now = past.basis_of(deployment)
        startup = starting.classified(msgspec.structs.replace(startup, compiled_because=self._because(startup, now, before)))
        past.keep(deployment, _newer(self._known, now, startup))
        return startup

    def _wall(self, rig_s: float) -> float:
        """A moment of the rig's clock since the server was ready, in the time of its files: both run at one rate by then."""
        return time.time() - (self._deployment.clock.time() - rig_s)

    def _extended(self, after: Snapshot) -> Snapshot:
        """The snapshot from before, with places that only showed when the server ran: what is older than the start was there."""
        known = {str(each.place.here) for each in self._before.places}
        began_ns = int(self._began_s * 1e9)
        more = [
            PlaceSnapshot(each.place, True, {key: entry for key, entry in each.entries.items() if entry.changed_ns < began_ns})
            for each in after.places
            if str(each.place.here) not in known
        ]
        return self._before._replace(places=(*self._before.places, *more))

    def _because(self, startup: Startup, now: Basis, before: Snapshot) -> str | None:
        added = startup.cache_diff
        if added is None or not compiled(added, startup.autotune_runs):
            return None
        found = [
            f"the cache is not used: {name}={now.environment[name]}"
            for name, off in _SWITCHES.items()
            if now.environment.get(name, "").lower() in off
        ]
        changed = past.changes(self._basis, now) if self._basis is not None else []
        if changed:
            found.append(f"since the last start: {', '.join(changed)}")
        if not found:
            found += self._by_content(startup, added, before)
        return "; ".join(found) or None

    def _by_content(self, startup: Startup, added: CacheDiff, before: Snapshot) -> list[str]:
        """Reasons that the caches themselves show."""
        if added.before_entries == 0:
            lost = next((each.detail for each in self._kernels.doubts()), None)
            return ["caches were empty" + (f" ({lost})" if lost is not None else "")]
        found = [f"{len(self._broken)} entries were broken before: {self._broken[0].detail}"] if self._broken else []
        had = {entry.what for place in before.places for entry in place.entries.values()}
        choices = any(key.startswith("cache/") for place in before.places for key in place.entries)
        if startup.autotune_runs and not choices:
            found.append("autotuning results were not kept: no file in Inductor's cache/")
        if added.new_graphs and "graph" not in had:
            found.append("the graph caches were empty")
        if added.rewritten and not found:
            found.append(
                f"{len(added.rewritten)} known kernels were compiled again in place: the cache was not used, or was moved here"
            )
        after = startup.after_ready
        if after is not None and after.new_kernels and len(after.new_kernels) == len(added.new_kernels):
            found.append("all of them at the first requests after ready: the warm-up does not reach them")
        return found


INTEGRITY_SAMPLE = 200
"""Entries of each cache that are looked into before a start; all of them are read by ``pytest-sglang cache``."""


def compiled(added: CacheDiff, autotune_runs: int | None) -> bool:
    """Whether a start compiled what it should have found: variants of known kernels do not count."""
    return bool(added.new_kernels or added.new_graphs or added.rewritten or autotune_runs)


def _newer(known: Past, now: Basis, startup: Startup) -> Past:
    cold = startup.kind == "cold" and startup.capture_s is not None
    return Past(
        basis=now,
        cold_capture_s=startup.capture_s if cold else known.cold_capture_s,
        cold_at=now.at if cold else known.cold_at,
    )
