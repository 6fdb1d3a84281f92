"""How a run says that something cannot be done, was not done, or is not good enough."""

from __future__ import annotations


class SessionError(Exception):
    """Base of what a session tells its user; the message is one clear sentence."""


class Refused(SessionError):
    """The run must not start (exit code 4): nothing to measure, a lock is held, a power level outside a card's range."""


class NotChecked(SessionError):
    """A promised check that is not made, with the reason: never a pass."""


class Inconclusive(SessionError):
    """Could not be measured. ``because`` names the check whose failure is the reason, where it is one."""

    def __init__(self, message: str, because: str | None = None) -> None:
        super().__init__(message)
        self.because = because


class NotPutBack(Inconclusive):
    """Something of the rig could not be put back now: it stays in the journal, for the guard and ``pytest-sglang undo``."""


class CheckFailed(SessionError):
    """The promise is not kept; the message has measured, limit and cause."""


class ServerDied(SessionError):
    """The server was there and is gone, and nobody asked it to: the rig's own failure. ``last_lines`` are its log's."""

    def __init__(self, message: str, cause: str, last_lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.cause, self.last_lines = cause, last_lines
