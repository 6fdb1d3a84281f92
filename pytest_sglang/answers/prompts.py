"""The fixed prompts: other subjects, other lengths, with continuations of which a language model is sure at least in part.

They never change under a name: answers of different runs are compared by it.
"""

from __future__ import annotations

from typing import NamedTuple

TOKENS = 32
"""Length of each answer."""


class Prompt(NamedTuple):
    """A text to be continued, and the name under which its answer is kept."""

    name: str
    text: str


FIXED: tuple[Prompt, ...] = (
    Prompt("capitals", "The capital of Italy is Rome. The capital of Japan is Tokyo. The capital of France is"),
    Prompt("counting", "one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve,"),
    Prompt("code", 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n    if n < 2:\n        return n\n    return'),
    Prompt(
        "record",
        '[{"day": "Monday", "number": 1, "weekend": false}, {"day": "Tuesday", "number": 2, "weekend": false}, {"day": "Wednesday",',
    ),
    Prompt(
        "water",
        "Water is made of hydrogen and oxygen. It freezes at 0 degrees Celsius and boils at 100 degrees Celsius at sea level. On a high "
        "mountain the air is thinner, and so the pressure on the surface of the water is lower. Its molecules need less energy to "
        "leave it, which is why on a mountain water boils at a temperature that is",
    ),
    Prompt("german", "Ein Jahr hat zwölf Monate: Januar, Februar, März, April, Mai,"),
)
