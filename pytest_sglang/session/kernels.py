"""``triton_cache``: every place where this SGLang's compiled kernels really are, what a start added, and setting them aside without loss."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sglang.cache import aside, diff, locate, snapshot, survive
from pytest_sglang.record.values import CacheDiff, Finding
from pytest_sglang.session.errors import Inconclusive, NotChecked

if TYPE_CHECKING:
    from pytest_sglang.cache.aside import Moved
    from pytest_sglang.cache.locate import CachePlace
    from pytest_sglang.cache.snapshot import Snapshot
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.journal import Entry


class TritonCache:
    """The compile caches of a deployment's server."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._places: tuple[CachePlace, ...] | None = None
        self.aside: list[tuple[Entry, Moved]] = []
        """Caches that are renamed at this moment."""
        self._keep = False

    @property
    def places(self) -> tuple[CachePlace, ...]:
        """Where the caches are, by the server's environment and its version's defaults; ``~/.triton/cache`` alone would be wrong."""
        if self._places is None:
            self._places = self._locate()
        return self._places

    def _locate(self) -> tuple[CachePlace, ...]:
        controller = self._deployment.controller
        state = controller.state()
        version = self._deployment.server.info.get("version") if state.active else None
        return places_of(dict(controller.environment()), version, state.pid)

    def snapshot(self) -> Snapshot:
        """Every entry of every cache, by kernel name; a place that cannot be read is kept with its reason."""
        return snapshot.take(self.places)

    def added_since(self, before: Snapshot) -> CacheDiff:
        """New kernel names, new variants of known ones, new graphs since ``before``."""
        return diff.added(before, self.snapshot())

    def added_after(self, epoch_s: float) -> CacheDiff:
        """What was written at ``epoch_s`` or later: for a start that nobody watched."""
        return diff.since(self.snapshot(), epoch_s)

    def places_unasked(self) -> tuple[CachePlace, ...]:
        """Where the caches are, without a question to the server: while it starts, /server_info hangs."""
        if self._places is not None:
            return self._places
        controller = self._deployment.controller
        return places_of(dict(controller.environment()), None, controller.state().pid)

    def findings(self) -> tuple[Finding, ...]:
        """Will the caches survive a reboot, a stop of the unit, another user?"""
        if self._deployment.simulation is not None:
            return ()  # the simulated rig lives in a temporary directory, all of it
        controller = self._deployment.controller
        show = getattr(controller, "show", None)
        return tuple(survive.findings(self.places, controller.environment(), unit=show() if show is not None else None))

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Empty caches inside the block, the old ones back behind it. The server is stopped for each of the two moves.

        Raises NotChecked without --sglang-allow-cold, or where a cache cannot be renamed safely.
        """
        deployment = self._deployment
        if not deployment.options.may_go_cold and not deployment.controller.run_owned:
            raise NotChecked("the caches are not set aside without --sglang-allow-cold")
        places = self.places
        was_active = deployment.controller.state().active
        pid = deployment.controller.state().pid
        refused = aside.refusals(
            places,
            allow_temporary=deployment.simulation is not None or deployment.controller.kind == "command",
            ignore_pids=() if pid is None else (pid,),
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
        """Restore what is set aside, newest first: the server is stopped for it, unless the new caches are to stay."""
        deployment = self._deployment
        from pytest_sglang.session import stopping

        if not self.aside:
            return
        active = deployment.controller.state().active
        if not self._keep and active and not deployment.controller.run_owned:
            try:
                stopping.until_quiet(deployment)
            except Inconclusive as busy:
                self._keep = True
                deployment.not_put_back("caches", f"{busy}, so the caches of before stay set aside")
        if self._keep:
            for entry, moved in self.aside:
                deployment.journal.resolve(entry.id, f"new caches kept, the old ones stay at {moved.aside}")
                told = Finding(
                    "caches-kept", "warn", str(moved.original), f"the old cache is kept at {moved.aside}", f"rm -r {moved.aside}"
                )
                deployment.recorder.findings((told,))
            self.aside.clear()
        else:
            if active:
                deployment.recorder.findings(stopping.stop(deployment))
            while self.aside:
                entry, moved = self.aside[-1]
                aside.restore([moved])
                deployment.journal.resolve(entry.id, "put back")
                self.aside.pop()
        if deployment.started_entry is not None:
            deployment.journal.resolve(deployment.started_entry.id, "kept" if self._keep else "stopped again")
            deployment.started_entry = None
        if self._keep and deployment.controller.state().active:
            deployment.server_is_back()


def places_of(environ: dict[str, str], version: str | None, pid: int | None) -> tuple[CachePlace, ...]:
    """Caches of a server with this environment (its unit's or command's) and version; its process tells more, if it can be read."""
    user = pwd.getpwuid(os.getuid()).pw_name
    if pid is not None:
        seen = locate.environment_of(pid)
        environ = {**environ, **seen} if seen else environ
        user = _owner(pid) or user
    home = Path(environ.get("HOME") or _home(user))
    return locate.locate(version=version, environ=environ, home=home, tmpdir=Path(environ.get("TMPDIR") or "/tmp"), user=user)


def _owner(pid: int) -> str | None:
    try:
        return pwd.getpwuid(os.stat(f"/proc/{pid}").st_uid).pw_name
    except (OSError, KeyError):
        return None


def _home(user: str) -> str:
    try:
        return pwd.getpwnam(user).pw_dir
    except KeyError:
        return tempfile.gettempdir()
