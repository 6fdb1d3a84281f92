"""Secrets out of whatever is kept: values of keys that name one, and the tokens that follow them in an argument list."""

from __future__ import annotations

import re
from typing import Any

SECRET = re.compile(r"(api[-_]?key|token$|[-_]token|secret|password|passwd|credential|authorization|bearer)", re.IGNORECASE)
HIDDEN = "[redacted]"


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
