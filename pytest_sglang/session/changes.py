"""How each kind of change is looked at and undone, from nothing but its journal entry: the guard is not the run's process."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from pytest_sglang.session.errors import SessionError
from pytest_sglang.session.journal import Entry

Action = Literal["undone", "nothing to do", "not ours any more", "owner alive", "failed", "would undo"]


class UndoError(SessionError):
    """A change could not be looked at or put back; the message says what stands now and how to do it by hand."""


class Undoer(Protocol):
    """Looks at one kind of change, and puts it back. Values are those of the entry's ``before`` and ``after``."""

    limit_s: float
    """Wall seconds after which a look or an undo is given up: a stuck driver must not keep the other changes from being undone."""
    lost_by_reboot: bool
    """Whether a reboot undoes it by itself."""

    def settle_s(self, entry: Entry) -> float:
        """Seconds after ``entry.at`` during which the change may still be under way although its owner is dead."""

    def under_way(self, entry: Entry) -> bool:
        """Whether, within that time, the old value that stands now may still become the new one. May raise UndoError."""

    def present(self, entry: Entry) -> Any:
        """The value that stands now. Raises UndoError where that cannot be told."""

    def same(self, value: Any, present: Any) -> bool:
        """Whether a journalled value is the present one."""

    def say(self, value: Any) -> str:
        """A value for a person."""

    def undo(self, entry: Entry) -> None:
        """Put ``entry.before`` back. Raises UndoError."""

    def tidy(self, entry: Entry) -> None:
        """Where ``entry.before`` stands already: remove what a crash in the middle of the change left beside it."""


class Change:
    """What most undoers have in common."""

    limit_s = 30.0
    lost_by_reboot = False

    def __init__(self, context: Mapping[str, Any]) -> None:
        self._context = context

    def settle_s(self, entry: Entry) -> float:
        """Nothing is under way once its owner is dead."""
        return 0.0

    def under_way(self, entry: Entry) -> bool:
        """Not known, so it may."""
        return True

    def same(self, value: Any, present: Any) -> bool:
        """Equal."""
        return bool(value == present)

    def tidy(self, entry: Entry) -> None:
        """Nothing lies about."""

    def say(self, value: Any) -> str:
        """As it stands; None is absence."""
        return "absent" if value is None else str(value)


_REGISTERED: dict[str, Callable[[Mapping[str, Any]], Undoer]] = {}


def register(kind: str, make: Callable[[Mapping[str, Any]], Undoer]) -> None:
    """Have changes of this kind undone by ``make(context)`` in this process.

    For the guard to find it, journal the kind as "module:make" instead.
    """
    _REGISTERED[kind] = make


def undoer(entry: Entry) -> Undoer:
    """The undoer of an entry, made from its context. Raises UndoError for an unknown kind."""
    from pytest_sglang.session.undoers import KINDS

    known = {**KINDS, **_REGISTERED}
    if entry.kind in known:
        return known[entry.kind](entry.context)
    if ":" in entry.kind:
        made: Undoer = named(entry.kind)(entry.context)
        return made
    raise UndoError(
        f"{entry.target}: this version of pytest-sglang knows no change of kind {entry.kind!r} (it knows {', '.join(known)}): "
        "undo it with the version that made it"
    )


def named(name: str) -> Any:
    """The object "module:attribute". Raises UndoError."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UndoError(f"cannot open {name!r} (a journal names it as module:attribute): {error}") from None


def undo_entry(entry: Entry) -> str:
    """For the run that made it: put one change back if the value is still ours, and say what came of it. Raises UndoError."""
    return act(entry, undoer(entry))[1]


def act(entry: Entry, undoing: Undoer) -> tuple[Action, str]:
    """Look, undo only where the present value is still ``after``, read back. Raises UndoError."""
    action, detail = judge(entry, undoing, undoing.present(entry))
    if action == "nothing to do":
        undoing.tidy(entry)
    if action != "would undo":
        return action, detail
    undoing.undo(entry)
    back = undoing.present(entry)
    if not undoing.same(entry.before, back):
        raise UndoError(f"{name_of(entry)} is {undoing.say(back)}, although {undoing.say(entry.before)} was put back")
    return "undone", f"{name_of(entry)} is {undoing.say(entry.before)} again (the run had made it {undoing.say(entry.after)})"


def judge(entry: Entry, undoing: Undoer, present: Any) -> tuple[Action, str]:
    """What is to be done about a change, given the present value; touches nothing."""
    if undoing.same(entry.after, present):
        return "would undo", f"{name_of(entry)} is {undoing.say(present)} and would be {undoing.say(entry.before)} again"
    if undoing.same(entry.before, present):
        return "nothing to do", f"{name_of(entry)} is {undoing.say(present)}, as it was before the run"
    detail = (
        f"{name_of(entry)} is {undoing.say(present)}, not {undoing.say(entry.after)} as the run had made it: "
        f"somebody else has changed it since, so it is left alone (before the run it was {undoing.say(entry.before)})"
    )
    return "not ours any more", detail


def name_of(entry: Entry) -> str:
    """How messages name a change's subject: "power limit of GPU-5c…"."""
    kind = {
        "power_limit": "power limit of ",
        "server": "server ",
        "cache_aside": "cache ",
        "process": "process ",
        "directory": "directory ",
    }
    return f"{kind.get(entry.kind, entry.kind + ' ')}{entry.target}"
