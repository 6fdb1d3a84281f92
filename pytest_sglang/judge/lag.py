"""What the client's own lateness could have changed in a rate. Pure."""

from __future__ import annotations

from pytest_sglang.record.values import Throughput


def rate_range(measured: Throughput, low: float, high: float, *, end_to_end: bool = False) -> tuple[float, float]:
    """``low`` and ``high`` (tok/s) as far apart as the client's lag allows.

    decode: t_last - t_first may be wrong by the lag of one stamp in either direction. end to end: t_last - t_sent can only be too long.
    """
    for_high = for_low = 1.0
    for done in measured.rounds:
        rate = done.end_to_end_tok_s if end_to_end else done.decode_tok_s
        if not rate or done.output_tokens <= 0:
            continue
        seconds = done.output_tokens / measured.streams / rate
        lag_s = done.stamp_lag_s + (done.send_lag_s if end_to_end else 0.0)
        for_high = max(for_high, seconds / max(seconds - lag_s, 1e-9))
        for_low = min(for_low, 1.0 if end_to_end else seconds / (seconds + lag_s))
    return low * for_low, high * for_high
