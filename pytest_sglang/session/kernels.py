"""``triton_cache``: every place where this SGLang's compiled kernels really are, what a start added, and setting them aside without loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_sglang.cache import aside
from pytest_sglang.record.values import Finding
from pytest_sglang.session import past
from pytest_sglang.session.cacheview import CacheView, Source
from pytest_sglang.session.errors import Inconclusive, NotChecked, NotPutBack

if TYPE_CHECKING:
    from pytest_sglang.cache.aside import Moved
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.journal import Entry
    from pytest_sglang.session.past import Basis


class TritonCache(CacheView):
    """The compile caches of a deployment's server."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(
            Source(
                controller=lambda: deployment.controller,
                version=lambda: deployment.server.info.get("version"),
                cards=lambda: deployment.hardware.serving if deployment.hardware is not None else (),
                start=deployment.rig.start,
                simulation=deployment.simulation,
            )
        )
        self._deployment = deployment
        self.aside: list[tuple[Entry, Moved]] = []
        """Caches that are renamed at this moment."""
        self._keep = False
        self.last_basis: Basis | None = None
        """What the server that was stopped last ran on."""

    def remember(self) -> None:
        """Keep what the running server runs on: its successor is compared with it. Called before it is stopped."""
        if self._deployment.controller.state().active:
            self.last_basis = past.basis_of(self._deployment)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Empty caches inside the block, the old ones back behind it. The server is stopped for each of the two moves.

        Raises NotChecked without --sglang-allow-cold, or where a cache cannot be renamed safely.
        """
        deployment = self._deployment
        if not deployment.options.may_go_cold and not deployment.controller.run_owned:
            raise NotChecked("the caches are not set aside without --sglang-allow-cold")
        self._keep = False
        places = self.places
        state = deployment.controller.state()
        if state.result == "unreadable" and not state.active:
            raise Inconclusive(f"whether {deployment.controller.subject} is active cannot be read: {state.detail}")
        was_active, pid = state.active, state.pid
        refused = aside.refusals(
            places,
            allow_temporary=deployment.controller.kind == "command",
            ignore_pids=() if pid is None else (pid,),
            machine=self.machine,
        )
        if refused:
            raise NotChecked(f"the caches cannot be set aside: {refused[0]}")
        if was_active:
            deployment.server.stop()
        try:
            for planned in aside.plan_aside(places, token=deployment.recorder.run.run_id):
                entry = deployment.journal.record(
                    "cache_aside", str(planned.original), str(planned.original), str(planned.aside), aside.describe(planned)
                )
                self.aside.append((entry, planned))
                aside.move(planned)
            yield
            # the new caches may stay only where a cold start has filled them
            self._keep = deployment.options.keep_cold_cache and deployment.server.lost_by is None
        finally:
            self.put_back()
            if was_active and deployment.server.lost_by is None and not deployment.controller.state().active:
                deployment.server.come_back()

    def put_back(self) -> None:
        """Restore what is set aside, newest first: the server is stopped for it, unless the new caches are to stay.

        Raises NotPutBack naming every cache that could not be restored, when the others have been.
        """
        deployment = self._deployment
        from pytest_sglang.session import stopping

        if not self.aside:
            return
        active, in_use = deployment.controller.state().active, False
        if not self._keep and active and not deployment.controller.run_owned:
            try:
                stopping.until_quiet(deployment, never_ready=deployment.server.starting)
            except Inconclusive as busy:
                in_use = True
                remedy = "when nobody needs the server: stop it, then pytest-sglang cache restore"
                deployment.not_put_back("caches", f"{busy}, so the caches of before stay set aside", remedy)
        kept, failed = self._keep or in_use, []
        if kept:
            self._leave(in_use)
        else:
            if active:
                deployment.recorder.findings(stopping.stop(deployment))
            failed = self._restore()
        if deployment.started_entry is not None:
            deployment.journal.resolve(deployment.started_entry.id, "kept" if kept else "stopped again")
            deployment.started_entry = None
        if kept and deployment.controller.state().active:
            deployment.server_is_back()
        if failed:
            raise NotPutBack("; ".join(failed))

    def _leave(self, in_use: bool) -> None:
        """The old caches stay where they are: their owner wants the new ones, or somebody works on them."""
        deployment = self._deployment
        for entry, moved in self.aside:
            deployment.journal.resolve(entry.id, f"new caches kept, the old ones stay at {moved.aside}")
            remedy = "pytest-sglang cache restore" if in_use else f"rm -r {moved.aside}"
            told = Finding("caches-kept", "warn", str(moved.original), f"the old cache is kept at {moved.aside}", remedy)
            deployment.recorder.findings((told,))
        self.aside.clear()

    def _restore(self) -> list[str]:
        """Put back every cache that can be, newest first; one sentence for each that cannot, which stays in ``aside`` and the journal."""
        left: list[tuple[Entry, Moved]] = []
        failed: list[str] = []
        for entry, moved in reversed(self.aside):
            try:
                aside.restore([moved])
                self._deployment.journal.resolve(entry.id, "put back")
            except Exception as error:  # one that is stuck must not keep the others from their places
                left.append((entry, moved))
                failed.append(str(error) if isinstance(error, aside.AsideError) else f"{moved.original}: {error}")
        self.aside[:] = reversed(left)
        return failed
