"""What is wrong with a rig file: every mistake with its place, what stands there, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from pytest_sglang.record.values import Value


class Problem(Value, frozen=True, kw_only=True):
    """One mistake. ``found``: what stands at ``key``; ``expected``: what is wrong with it and a right example."""

    file: Path | None = None
    key: str = ""
    found: str = ""
    expected: str = ""
    nearest: str | None = None

    def __str__(self) -> str:
        places = [place for place in (shown_path(self.file) if self.file is not None else "", self.key) if place]
        said = " ".join(part for part in (self.found, self.expected) if part)
        hint = f"; did you mean {self.nearest!r}?" if self.nearest is not None else ""
        return ": ".join([*places, said]) + hint


class RigError(ValueError):
    """A rig file that cannot be used; ``str()`` is one line for each of ``problems``, all of them at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def shown_path(path: Path) -> str:
    """``path`` as messages name it: relative where it lies below the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant; None when nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
