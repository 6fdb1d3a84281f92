"""The server's own count of generated tokens, beside the count of the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

GENERATED = "sglang:generation_tokens_total"
"""Counted when a request finishes, health checks aside (SGLang 0.4.6 to 0.5.23; exact and at once on a real 0.5.23)."""

VERIFIED = "sglang:spec_verify_calls_total"
"""Verifications of speculative decoding, counted with the tokens of the same request (0.5.23)."""

SETTLE_S = 1.5
"""So long the counter may be behind the end of an answer."""
_LOOK_S = 0.05


class TokenCounter:
    """What the counter gained since ``begin``. ``metrics``: samples by name, None where the server has none (no --enable-metrics)."""

    def __init__(self, metrics: Callable[[], Mapping[str, float] | None], *, settle_s: float = SETTLE_S) -> None:
        self._metrics, self._settle_s = metrics, settle_s
        self._before: float | None = None
        self._verified = 0.0
        self.accept_length: float | None = None
        """Tokens for each verification over what ``gained`` told last; None without speculative decoding."""

    def begin(self) -> None:
        """Count from here on, once what ended just now is counted: two readings in a row that agree."""
        self._before = self._read()
        until = time.monotonic() + self._settle_s
        while self._before is not None and time.monotonic() < until:
            time.sleep(_LOOK_S)
            now = self._read()
            if now == self._before:
                return
            self._before = now

    def gained(self, own_tokens: int) -> int | None:
        """Tokens since ``begin``, as soon as it has ``own_tokens`` or will not come to them; None where it cannot be read."""
        verified = self._verified
        self.accept_length = None
        if self._before is None:
            return None
        until = time.monotonic() + self._settle_s
        while True:
            now = self._read()
            if now is None or now < self._before:
                # gone, or another process's: nothing to compare with
                return None
            if now - self._before >= own_tokens or time.monotonic() >= until:
                calls = self._verified - verified
                self.accept_length = (now - self._before) / calls if calls > 0 else None
                return round(now - self._before)
            time.sleep(_LOOK_S)

    def _read(self) -> float | None:
        found = self._metrics()
        if found is None:
            return None
        self._verified = found.get(VERIFIED, 0.0)
        return found.get(GENERATED)
