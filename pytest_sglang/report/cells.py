"""Text in terminal cells: East Asian characters take two, combining ones none, so columns stay columns whatever a rig is called."""

from __future__ import annotations

import re
import textwrap
import unicodedata

ELLIPSIS = "…"
_TOGETHER = re.compile(r"(?<=\d) (?=(?:W|s|ms|min|tok/s|J/token|GB|%)(?!\w))")
"""A number and its unit stay in one line."""


def width(text: str) -> int:
    """Cells that ``text`` takes (Unicode Standard Annex 11: wide and fullwidth are two cells)."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def cut(text: str, most: int) -> str:
    """Its beginning in at most ``most`` cells, with an ellipsis where something is missing."""
    if width(text) <= most:
        return text
    while text and width(text) > most - 1:
        text = text[:-1]
    return f"{text}{ELLIPSIS}"


def tail(text: str, most: int) -> str:
    """Its end in at most ``most`` cells, with an ellipsis where something is missing."""
    if width(text) <= most:
        return text
    while text and width(text) > most - 1:
        text = text[1:]
    return f"{ELLIPSIS}{text}"


def left(text: str, wide: int) -> str:
    """Padded behind."""
    return text + " " * (wide - width(text))


def right(text: str, wide: int) -> str:
    """Padded before."""
    return " " * (wide - width(text)) + text


def wrapped(text: str, wide: int, first: str = "", rest: str = "") -> list[str]:
    """Lines of at most ``wide`` cells; a text without spaces is broken where it must be."""
    text = _TOGETHER.sub("\u00a0", text)
    told = textwrap.wrap(text, wide, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [first.rstrip()]
    out: list[str] = []
    for line in told:
        while width(line) > wide:
            end = next(place for place in range(len(line), 0, -1) if width(line[:place]) <= wide)
            out.append(line[:end])
            line = rest + line[end:]
        out.append(line)
    return [line.replace("\u00a0", " ") for line in out]
