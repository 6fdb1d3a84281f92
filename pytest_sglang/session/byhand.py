"""Caches set aside, put back or dropped by hand: for an owner who wants a recompilation for good. Nothing is stopped or started."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from pytest_sglang.cache import aside
from pytest_sglang.cache.aside import AsideError, Moved
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.machine import Machine
from pytest_sglang.cache.users import users_of
from pytest_sglang.session import everybody
from pytest_sglang.session import journal as journals
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.locks import LockHeld, RigLocks
from pytest_sglang.session.state import Owner, state_dir

_OUR_TOKEN = re.compile(r"\d{4}-?\d\d-?\d\dT[\d-]+Z-.*[0-9a-f]{4}")
"""Names that set-aside and runs give: a time and something random. ``cache.aside-old`` was named by its owner."""


class Done(NamedTuple):
    """What was done with one cache: where it is, where it is kept, what is to be known."""

    original: str
    aside: str
    note: str = ""


def set_aside(places: Sequence[CachePlace], machine: Machine, locks: Sequence[str]) -> list[Done]:
    """Rename every cache, all or nothing, and leave it so. Raises Refused where that is not safe, with what to do instead."""
    refused = aside.refusals(places, machine=machine)
    if refused:
        raise Refused("the caches are not set aside: " + "; ".join(refused))
    planned = aside.plan_aside(places, token=f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}")
    if not planned:
        raise Refused("there is no cache to set aside: none of the directories exists (pytest-sglang cache lists them)")
    done: list[Moved] = []
    with _Changing(locks) as journal:
        entries = [
            journal.record("cache_aside", str(each.original), str(each.original), str(each.aside), aside.describe(each))
            for each in planned
        ]
        try:
            for each in planned:
                aside.move(each)
                done.append(each)
        except AsideError as error:
            aside.restore(done)
            for entry in entries:
                journal.resolve(entry.id, "put back")
            raise Refused(str(error)) from None
        for entry in entries:
            journal.resolve(entry.id, "set aside by hand, to stay so")
    return [Done(str(each.original), str(each.aside)) for each in planned]


def stopped(running_as: str | None) -> None:
    """Raise Refused where the server runs: it would go on writing into the renamed directory. ``running_as``: how it is stopped."""
    if running_as is not None:
        raise Refused(f"the server is running, and caches are not renamed under it: stop it first ({running_as})")


def known(unseen: str | None) -> None:
    """Raise Refused where ``unseen`` says why it is not known what would be renamed or removed, or under whom."""
    if unseen is not None:
        raise Refused(f"no cache is touched: {unseen}")


def restore(places: Sequence[CachePlace], locks: Sequence[str]) -> list[Done]:
    """Put back every cache that is set aside, the newest first; what has grown meanwhile is kept beside it. Raises Refused."""
    standing = _standing(places)
    _unused(standing)
    out = []
    with _Changing(locks):
        for each in reversed(standing):
            try:
                notes = aside.swap_back(each)
            except AsideError as error:
                raise Refused(str(error)) from None
            out.append(Done(str(each.original), str(each.aside), "; ".join(notes)))
    return out


def drop(places: Sequence[CachePlace], locks: Sequence[str]) -> list[Done]:
    """Remove what is set aside, for good. Raises Refused while nothing was compiled in its place."""
    standing = _standing(places)
    ours = [each for each in standing if _OUR_TOKEN.fullmatch(each.token)]
    if not ours:
        named = ", ".join(str(each.aside) for each in standing)
        raise Refused(f"{named}: not a name that pytest-sglang gives, so it is somebody else's to remove")
    out = []
    with _Changing(locks):
        for each in ours:
            try:
                aside.drop(each)
            except AsideError as error:
                text = f"{error} (start the server first, or put it back: pytest-sglang cache restore)"
                raise Refused(text) from None
            out.append(Done(str(each.original), str(each.aside)))
    return out


def _standing(places: Sequence[CachePlace]) -> list[Moved]:
    found = aside.standing(places)
    if not found:
        raise Refused("no cache is set aside (nothing named <cache>.aside-... stands beside the caches)")
    for each in found:
        owner = _run_of(str(each.aside))
        if owner is not None:
            raise Refused(f"{each.aside} belongs to {owner}")
    return found


def _run_of(path: str) -> str | None:
    """Whose change a renamed cache is, where a run has not ended: it is that run's to put back."""
    for file in journals.open_entries(state_dir()):
        if any(entry.kind == "cache_aside" and entry.after == path for entry in file.open) and file.owner is not None:
            if file.owner.alive():
                return f"a run that is not over, {file.owner.describe(file.entries[0].at)}"
            return "a run that died (put back what it has changed: pytest-sglang undo)"
    for user, file in everybody.foreign():
        if any(entry.kind == "cache_aside" and entry.after == path for entry in file.open) and file.owner is not None:
            if file.owner.alive():
                return f"a run of {user} that is not over, {file.owner.describe(file.entries[0].at)}"
            return f"a run of {user} that died ({user} puts back what it has changed: pytest-sglang undo)"
    return None


def _unused(standing: Collection[Moved]) -> None:
    for user in users_of([each.original for each in standing if each.original.exists()]):
        raise Refused(f"{user.path} is in use by pid {user.pid} ({user.command}): stop it first")


class _Changing:
    """The rig, locked, with a journal open: a kill in the middle is put back by ``pytest-sglang undo`` or by the next run."""

    def __init__(self, locks: Sequence[str]) -> None:
        self._owner = Owner.me(f"cache-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}")
        simulated = any(each.startswith("simulated ") for each in locks)
        self._locks = RigLocks(state_dir(), list(locks), None if simulated else everybody.shared_dir()) if locks else None
        self._journal = Journal(state_dir(), self._owner)

    def __enter__(self) -> Journal:
        if self._locks is not None:
            try:
                self._locks.acquire(self._owner)
            except LockHeld as held:
                raise Refused(str(held)) from None
            self._journal.covers(self._locks.names)
        return self._journal

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        if self._locks is not None:
            self._locks.release()
