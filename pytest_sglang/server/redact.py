"""Secrets that SGLang shows in clear: the API keys and the TLS key's password stand in its echoed arguments and in /server_info."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MASK = "<redacted>"
SECRET_KEYS = frozenset({"api_key", "admin_api_key", "ssl_keyfile_password"})
_NAMES = r"(?:admin[_-])?api[_-]key|ssl[_-]keyfile[_-]password"
# key='value', 'key': 'value', "key": "value"; a cut line may lack the closing quote
_PAIR = re.compile(rf"""((?:{_NAMES})['"]?\s*[=:]\s*)('(?:[^'\\\n]|\\.)*(?:'|$)|"(?:[^"\\\n]|\\.)*(?:"|$))""", re.MULTILINE)
_FLAG = re.compile(rf"(--(?:{_NAMES})(?:=|\s+|['\"],\s*['\"]))([^\s'\",\]]+)")
_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_FLAGS = frozenset({"--api-key", "--admin-api-key", "--ssl-keyfile-password"})


def text(value: str) -> str:
    """``value`` (log text, a launch command) with the secrets replaced by ``<redacted>``."""
    value = _PAIR.sub(lambda match: match[1] + match[2][0] + MASK + match[2][0], value)
    return _FLAG.sub(lambda match: match[1] + MASK, value)


def info(value: Any) -> Any:
    """A decoded JSON answer with the secrets replaced at any depth; an unset secret stays null."""
    if isinstance(value, dict):
        return {key: MASK if key in SECRET_KEYS and inner else info(inner) for key, inner in value.items()}
    if isinstance(value, list):
        hidden = argv(value) if all(isinstance(each, str) for each in value) else value
        return [info(each) for each in hidden]
    return text(value) if isinstance(value, str) else value


def argv(words: Sequence[str]) -> tuple[str, ...]:
    """A command line with the values of ``--api-key`` and its kin replaced."""
    hidden: list[str] = []
    for position, word in enumerate(words):
        if position and words[position - 1] in _FLAGS:
            hidden.append(MASK)
        elif word.partition("=")[0] in _FLAGS and "=" in word:
            hidden.append(f"{word.partition('=')[0]}={MASK}")
        else:
            hidden.append(word)
    return tuple(hidden)


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Environment variables with the values of those whose name tells of a secret replaced."""
    return {name: MASK if _VARIABLE.search(name) else value for name, value in variables.items()}
