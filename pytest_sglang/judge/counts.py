"""Do the answers and the server's own counters tell of the same tokens? Pure."""

from __future__ import annotations

TOLERANCE = 0.02
"""Answers and counters further apart than this share cannot both be right."""

DISAGREE = "answers and server counters disagree"


def miscounted(own_tokens: int, server_tokens: int | None, tolerance: float = TOLERANCE) -> str | None:
    """Why ``own_tokens`` (by the usage of every answer) and ``server_tokens`` (its counter's gain) contradict each other, or None.

    More on the counter: somebody else's requests ended meanwhile. Fewer: the usage tells of tokens that nobody generated.
    """
    if server_tokens is None or own_tokens <= 0:
        return None
    apart = (server_tokens - own_tokens) / own_tokens
    if abs(apart) <= tolerance:
        return None
    why = "somebody else's requests" if apart > 0 else "the usage tells of tokens that the server did not count"
    return f"{DISAGREE} by {100 * abs(apart):.0f} % ({own_tokens} and {server_tokens} tokens): {why}"
