"""A drawing surface that gives inline SVG: page colours by CSS variables, page font, ids of its own, alternative text.

Colours are drawn as placeholders and replaced in the text, because matplotlib cannot write a CSS variable; so one drawing is right
on a light page, on a dark one and in print.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pytest_sglang.record.values import Value

INK, MUTED, RULE, ACCENT, STRONG, WARN, FAIL, SOFT = (f"#0101{number:02x}" for number in range(1, 9))
"""Placeholder colours by what they mean; each becomes a CSS variable of the page."""

_VARIABLES = {
    INK: "var(--sg-ink, #1a1d21)",
    MUTED: "var(--sg-muted, #5b636d)",
    RULE: "var(--sg-rule, #d9dde2)",
    ACCENT: "var(--sg-accent, #7da3d8)",
    STRONG: "var(--sg-strong, #2457a6)",
    WARN: "var(--sg-warn, #8a5a00)",
    FAIL: "var(--sg-fail, #b3261e)",
    SOFT: "var(--sg-soft, #eef0f3)",
}
FONT_PX = 11.5
"""Text at a panel's natural width; on a phone a panel is at most an eighth smaller."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_FONT = re.compile(r"font-family: [^;\"]*|font: ([\d.]+px)[^;\"]*")
_NEUTRAL = re.compile(r' transform="rotate\(-?0 [^"]*\)"')


class Panel(Value, frozen=True, kw_only=True):
    """One drawing with its heading; ``svg`` None where ``missing`` says why there is none."""

    heading: str
    note: str = ""
    svg: str | None = None
    missing: str = ""


class DrawingError(RuntimeError):
    """Charts cannot be drawn; the message says why and what would help."""


@dataclass
class Canvas:
    """A figure of ``width`` x ``height`` CSS pixels with one plotting area; ``axes`` is matplotlib's."""

    figure: Any
    axes: Any
    width: float
    height: float

    def margins(self, left: float, right: float, top: float, bottom: float) -> None:
        """Place the plotting area, in pixels from the edges."""
        width, height = self.width, self.height
        self.axes.set_position([left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height])

    def svg(self, *, identity: str, title: str, description: str) -> str:
        """The drawing as an <svg> element whose ids begin with ``identity``."""
        buffer = io.StringIO()
        self.figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
        return inline(buffer.getvalue(), identity=identity, title=title, description=description)


@contextmanager
def canvas(width: float, height: float) -> Iterator[Canvas]:
    """A blank canvas in the house style; the drawing has to be taken inside the block. Raises DrawingError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DrawingError(f"matplotlib is missing ({error}): pip install matplotlib, then pytest-sglang report DIR") from None
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "pytest-sglang",
        "text.parse_math": False,
        "text.color": INK,
        "font.family": ["DejaVu Sans"],
        "font.size": FONT_PX,
        "axes.edgecolor": RULE,
        "axes.facecolor": "none",
        "axes.labelcolor": MUTED,
        "axes.linewidth": 1.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": True,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.major.size": 3.0,
        "ytick.major.size": 0.0,
        "lines.linewidth": 1.4,
        "hatch.color": MUTED,
        "hatch.linewidth": 0.6,
    }
    with matplotlib.rc_context(settings):
        # 72 points to the inch: one point of the file is one pixel of the page
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        yield Canvas(figure, figure.add_axes((0.1, 0.1, 0.8, 0.8)), width, height)


def clean(text: object) -> str:
    """Text that XML can hold: control characters of a log or a name would make the whole page unreadable."""
    return _CONTROL.sub("�", str(text)).replace("\n", " ").replace("\t", " ")


def inline(document: str, *, identity: str, title: str, description: str) -> str:
    """matplotlib's SVG document as an element of a page: no global style, unique ids, its colours and font, alternative text."""
    body = document[document.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', body)
    inner = body[body.index(">") + 1 : body.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    # its style rule is meant for a file of its own; in a page "*" would be the page
    inner = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", inner, count=1, flags=re.DOTALL)
    inner = re.sub(r'\bid="([^"]+)"', rf'id="{identity}-\1"', inner)
    inner = re.sub(r"url\(#([^)]+)\)", rf"url(#{identity}-\1)", inner)
    inner = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{identity}-\1"', inner)
    inner = _FONT.sub(lambda found: f"font-size: {found[1]}" if found[1] else "", inner).replace("; ;", ";")
    inner = _NEUTRAL.sub("", inner)
    for placeholder, variable in _VARIABLES.items():
        inner = inner.replace(placeholder, variable)
    inner = re.sub(r"\n\s*", "\n", inner)
    name, about = html.escape(clean(title)), html.escape(clean(description))
    size = f' viewBox="{box[1]}"' if box else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sg-svg" role="img" aria-labelledby="{identity}-t {identity}-d"{size}>'
        f'<title id="{identity}-t">{name}</title><desc id="{identity}-d">{about}</desc>{inner.strip()}</svg>'
    )
