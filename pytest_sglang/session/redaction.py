"""Secrets out of whatever is kept: values of keys that name one, and the tokens that follow them in an argument list."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SECRET = re.compile(r"(api[-_]?key|token$|[-_]token|secret|password|passwd|credential|authorization|bearer)", re.IGNORECASE)
HIDDEN = "[redacted]"
SHORTEST = 6
"""A shorter value of a secret variable is looked for nowhere: it may be any word."""
_NO_SECRET = re.compile(r"[\d.]+|true|false|none|/[\w./-]*", re.IGNORECASE)


def known(variables: Mapping[str, str], argv: Sequence[str] = ()) -> frozenset[str]:
    """Values that are secrets by the name of their variable, or that follow a secret flag: what no text may show."""
    found = {value for name, value in variables.items() if _VARIABLE.search(name)}
    for flag, value in itertools.pairwise(argv):
        if flag.startswith("-") and _secret(flag.lstrip("-")):
            found.add(value)
    found |= {word.partition("=")[2] for word in argv if word.startswith("-") and _secret(word.partition("=")[0].lstrip("-"))}
    return frozenset(each for each in found if len(each) >= SHORTEST and not _NO_SECRET.fullmatch(each) and each != HIDDEN)


_VARIABLE = re.compile(r"KEY|TOKEN(?!S\b|IZER)|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH", re.IGNORECASE)


def without(text: str, secrets: Iterable[str]) -> str:
    """``text`` with each of ``secrets`` replaced, the longest first."""
    for each in sorted(secrets, key=len, reverse=True):
        text = text.replace(each, HIDDEN)
    return text


def redact(value: Any) -> Any:
    """``value`` with secrets replaced; keys such as ``output_tokens`` are no secrets, ``api_key_env`` names a variable only."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if isinstance(inner, str) and inner and _secret(str(key)) else redact(inner) for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return _arguments([redact(each) for each in value])
    return value


def _secret(key: str) -> bool:
    return SECRET.search(key) is not None and not key.endswith("_env")


def _arguments(items: list[Any]) -> list[Any]:
    """``["--api-key", "abc"]`` and ``["--api-key=abc"]`` both lose the value."""
    out: list[Any] = []
    hide = False
    for item in items:
        if hide and isinstance(item, str):
            out.append(HIDDEN)
            hide = False
            continue
        if isinstance(item, str) and item.startswith("-") and _secret(item.split("=", 1)[0].lstrip("-")):
            flag, equals, _ = item.partition("=")
            out.append(f"{flag}={HIDDEN}" if equals else item)
            hide = not equals
            continue
        out.append(item)
    return out
