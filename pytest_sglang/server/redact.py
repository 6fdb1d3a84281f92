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
# what else a log may show: headers, tokens that tell by their form, URLs with a password, variables, flags of other programs
_HEADER = re.compile(
    r"""((?:proxy-)?authorization|x-api-key|api-key)((?:['"]?\s*[:=]|['"]\s*,)\s*(?:b(?=['"]))?['"]?)((?:bearer|basic|digest|token)\s+)?([^\s'",}\]\)]+)""",
    re.IGNORECASE,
)
_COOKIE = re.compile(r"""((?:set-)?cookie['"]?\s*:\s*['"]?)([^'"\r\n]+)""", re.IGNORECASE)
_BEARER = re.compile(r"\b(bearer\s+)([A-Za-z0-9._~+/=-]{8,})", re.IGNORECASE)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
    r"|nvapi-[\w-]{20,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)
_URL = re.compile(r"(\b[a-z][a-z0-9+.-]{1,15}://)[^\s/@'\"]{1,256}@", re.IGNORECASE)
_QUERY = re.compile(
    r"([?&](?:api_?key|access_?token|auth_?token|token|key|secret|password|signature|sig)=)([^&\s'\"]+)", re.IGNORECASE
)
_VALUE = r"""(?!(?:None|null|true|false|\d+)\b)('[^'\n]+'|"[^"\n]+"|[^\s'",;\]\)}]+)"""
_ASSIGNED = re.compile(
    r"""\b([A-Z][A-Z0-9_]{0,40}?(?:API_?KEY|ACCESS_?KEY|TOKEN(?!S|IZER)|SECRET|PASSWORD|PASSWD|CREDENTIALS?)[A-Z0-9_]{0,20}['"]?\s*[=:]\s*)"""
    + _VALUE
)
_NAMED = re.compile(
    r"""\b(\w{0,40}(?:password|passwd|secret|(?:access|auth|refresh|hf|hub|bearer|session|api|github)_token|secret_key|access_key|private_key)"""
    r"""['"]?\s*[=:]\s*)""" + _VALUE,
    re.IGNORECASE,
)
_OTHER_FLAG = re.compile(
    r"""(--(?:[a-z-]{0,40}-)?(?:token|password|passwd|secret|api-key|access-key|secret-key)(?:=|\s+|['"],\s*['"]))([^\s'",\]]+)""",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_FLAGS = frozenset({"--api-key", "--admin-api-key", "--ssl-keyfile-password"})


def text(value: str) -> str:
    """``value`` (log text, a launch command) with the secrets replaced by ``<redacted>``."""
    value = _PAIR.sub(lambda match: match[1] + match[2][0] + MASK + match[2][0], value)
    value = _FLAG.sub(lambda match: match[1] + MASK, value)
    value = _HEADER.sub(lambda match: f"{match[1]}{match[2]}{match[3] or ''}{MASK}", value)
    for pattern in (_COOKIE, _BEARER, _QUERY, _ASSIGNED, _NAMED, _OTHER_FLAG, _URL):
        value = pattern.sub(lambda match: match[1] + (f"{MASK}@" if match[0].endswith("@") else MASK), value)
    return _TOKEN.sub(MASK, value)


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
