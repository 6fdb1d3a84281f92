"""Is it as fast as promised at this power level? Decided by the interval of the median, not by one lucky round."""

import pytest


@pytest.mark.sglang_check("decode-throughput")
def test_decode_throughput(sglang_check, sglang_server, power_level_w):
    """Decode throughput at this power level holds the promised rate, sustained over the rounds."""
    for streams in sglang_check.promised_streams():
        sglang_check.judge_rows(sglang_server.measure(streams=streams))
