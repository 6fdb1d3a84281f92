"""Which rig file is meant: the named one, a packaged one, or the one that lies in its usual place."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pytest_sglang.rig.errors import Problem, RigError, nearest

NAME = "rig.toml"
PLACES: tuple[str, ...] = (NAME, f"acceptance/{NAME}")
"""Where a rig file is looked for when none is named, relative to the root directory; the first one counts."""


def packaged() -> dict[str, Path]:
    """Name -> path of the rig files that come with the package (``--rig=six-3090``)."""
    folder = Path(str(resources.files("pytest_sglang").joinpath("rigs")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find(option: str | None, rootdir: Path) -> Path:
    """The rig file's path: ``option`` (a path, from the working or the root directory, or a packaged name), else the usual places.

    Raises RigError naming what was looked for and the packaged names.
    """
    if option is not None:
        return _named(option, rootdir)
    for place in PLACES:
        if (rootdir / place).is_file():
            return rootdir / place
    says = f"not in {rootdir} and not in {rootdir / 'acceptance'} ({_others()}, or write one: pytest-sglang init -o {NAME})"
    raise RigError([Problem(key=NAME, expected=says)])


def _named(option: str, rootdir: Path) -> Path:
    path = Path(option).expanduser()
    for candidate in (path, rootdir / path):
        if candidate.is_file():
            return candidate
        if (candidate / NAME).is_file():
            return candidate / NAME
    known = packaged()
    if option in known:
        return known[option]
    says = f"--rig={option} is neither a file nor the name of a packaged rig ({_others()})"
    raise RigError([Problem(expected=says, nearest=nearest(option, [*known, "simulated"]))])


def _others() -> str:
    return f"packaged: {', '.join(packaged()) or 'none'}"
