"""What did the kernel say meanwhile? The driver writes an Xid there for every fault that it sees."""

import pytest


@pytest.mark.sglang_check("kernel-log")
def test_kernel_log(sglang_check, gpu_power):
    """The kernel log names no Xid and no other fault of the driver since the run began."""
    sglang_check.judge(gpu_power.judge_kernel_log())
