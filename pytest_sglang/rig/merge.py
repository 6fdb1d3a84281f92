"""A rig file with the files that it extends, as one table: later ones overlay key by key, and every value knows its file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pytest_sglang.rig.errors import Problem, RigError, nearest, shown_path
from pytest_sglang.rig.find import packaged
from pytest_sglang.rig.keys import SCHEMA
from pytest_sglang.rig.leaves import Place, shown

Keys = tuple[str, ...]
CONTROLS: tuple[str, ...] = ("systemd", "command", "container")
_OF_COMMAND = ("env", "cwd")
_BARE_QUANTITY = re.compile(r"""^\s*(?P<key>[\w.]+)\s*=\s*(?P<value>[<>=]*\s*\d+(?:\.\d+)?\s*(?:[a-zA-Zµ%][\w/%]*))\s*(?:#.*)?$""")


class Merged:
    """The values of a rig file and all that it extends; ``file_of`` tells where each one stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self._files: dict[Keys, Path] = {}

    def file_of(self, keys: Keys) -> Path:
        """The file in which the value at ``keys`` stands (a list stands in one file as a whole)."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self._files:
                return self._files[keys[:length]]
        return self.path

    def overlay(self, table: dict[str, Any], file: Path) -> None:
        """Lay ``table`` over what is there: tables key by key, everything else replaced as a whole."""
        server = table.get("server")
        if isinstance(server, dict) and any(name in server for name in CONTROLS):
            # who overlays the way the server is started means that way instead of the one below, not both
            below = self.values.get("server")
            dropped = CONTROLS if "command" in server else (*CONTROLS, *_OF_COMMAND)
            if isinstance(below, dict):
                for name in dropped:
                    below.pop(name, None)
        self._lay(self.values, table, (), file)

    def _lay(self, under: dict[str, Any], over: dict[str, Any], keys: Keys, file: Path) -> None:
        for name, value in over.items():
            below = under.get(name)
            here = (*keys, name)
            if isinstance(value, dict) and isinstance(below, dict):
                self._lay(below, value, here, file)
                continue
            under[name] = value
            self._forget(here)
            self._files[here] = file
            if isinstance(value, dict):
                under[name] = {}
                self._lay(under[name], value, here, file)

    def _forget(self, keys: Keys) -> None:
        for known in [each for each in self._files if each[: len(keys)] == keys]:
            del self._files[known]


def read(path: Path) -> Merged:
    """``path`` with everything it extends. Raises RigError: no such file, not TOML, another schema, a loop."""
    problems: list[Problem] = []
    merged = Merged(path)
    for file, table in reversed(_chain(path, problems)):
        merged.overlay(table, file)
    if problems:
        raise RigError(problems)
    return merged


def _chain(path: Path, problems: list[Problem]) -> list[tuple[Path, dict[str, Any]]]:
    """The file and all that it extends, itself first; where one is unreadable the chain ends and the problem is noted."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        seen.append(following)
        table = _parsed(following, problems)
        if table is None:
            break
        schema = table.pop("schema", None)
        if isinstance(schema, bool) or schema != SCHEMA:
            place = Place(following, "schema", problems)
            if schema is None:
                place.wrong("", f"is missing (write schema = {SCHEMA} as the first line)")
            else:
                place.wrong(shown(schema), f"is not a schema that this version reads (write schema = {SCHEMA})")
        extends = table.pop("extends", None)
        chain.append((following, table))
        following = None if extends is None else _extended(extends, seen, problems)
    return chain


def _extended(extends: object, seen: list[Path], problems: list[Problem]) -> Path | None:
    place = Place(seen[-1], "extends", problems)
    known = packaged()
    if not isinstance(extends, str) or not extends:
        place.wrong(shown(extends), "is not the name of a rig file (write e.g. extends = 'class.toml')")
        return None
    path = seen[-1].parent / Path(extends).expanduser()
    if not path.is_file():
        if extends not in known:
            names = ", ".join(known)
            says = f"is neither a file beside this one nor the name of a packaged rig (packaged: {names})"
            place.wrong(shown(extends), says, nearest(extends, known))
            return None
        path = known[extends]
    if path.resolve() in {each.resolve() for each in seen}:
        loop = " -> ".join(shown_path(each) for each in (*seen, path))
        place.wrong(shown(extends), f"makes a loop: {loop} (a class file must not extend what extends it)")
        return None
    return path


def _parsed(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.append(Problem(file=path, expected=f"{error.strerror or error} (write one: pytest-sglang init -o {path.name})"))
        return None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        problems.append(Problem(file=path, key=f"line {line}", expected="not UTF-8 text (save the file as UTF-8)"))
        return None
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        problems.append(_syntax(path, content, str(error)))
        return None


def _syntax(path: Path, content: str, said: str) -> Problem:
    """tomllib's message with its place in front, and the commonest slip named: a unit without quotes."""
    match = re.search(r"\s*\((?:at )?(?:line (\d+), column (\d+)|(end of document))\)$", said)
    if match is None:
        return Problem(file=path, expected=said)
    reason = said[: match.start()]
    if match[1] is None:
        return Problem(file=path, key="end of the file", expected=reason)
    line = content.splitlines()[int(match[1]) - 1] if int(match[1]) <= len(content.splitlines()) else ""
    bare = _BARE_QUANTITY.match(line)
    if bare is not None:
        reason += f' (a number with a unit stands in quotes: {bare["key"]} = "{bare["value"].strip()}")'
    return Problem(file=path, key=f"line {match[1]}, column {match[2]}", expected=reason)
