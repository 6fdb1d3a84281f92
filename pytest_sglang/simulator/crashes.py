"""What goes wrong in the middle of a simulated start: deaths as SGLang dies, deadlocks, a stopped process, a log that is rotated.

The forms of the lines are those of SGLang 0.5.11's sources (scheduler.py, engine.py) and of torch 2.11.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from pytest_sglang.simulator.clock import RigClock
from pytest_sglang.simulator.log import Log

HANG_S = 7 * 86_400.0
_RECORDED = Path(__file__).parent / "recorded"
_SITE = "/srv/venv/lib/python3.12/site-packages"
_FRAMES = f"""Traceback (most recent call last):
  File "{_SITE}/sglang/srt/managers/scheduler.py", line 3562, in run_scheduler_process
    scheduler = Scheduler(
                ^^^^^^^^^^
"""
CAUSE = "ValueError: Head size 96 is not supported by FlashInfer. Supported head sizes are: [64, 128, 256]."
_TRUE = f"""{_FRAMES}  File "{_SITE}/sglang/srt/layers/attention/flashinfer_backend.py", line 214, in init_cuda_graph_state
    raise ValueError(
{CAUSE}
"""
_OTHER_RANK = f"""{_FRAMES}  File "{_SITE}/torch/distributed/distributed_c10d.py", line 2929, in all_reduce
    work = group.allreduce([tensor], opts)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:94, remote process exited or there \
was a network error, NCCL version 2.28.9
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
"""
_PARENT = f"""Traceback (most recent call last):
  File "{_SITE}/sglang/launch_server.py", line 62, in <module>
    run_server(server_args)
  File "{_SITE}/sglang/srt/entrypoints/engine.py", line 917, in _launch_subprocesses
    data = scheduler_pipe_readers[i].recv()
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
EOFError
"""
_OCCUPIED = f"""{_FRAMES}  File "{_SITE}/sglang/srt/model_executor/model_runner.py", line 812, in init_torch_distributed
    raise RuntimeError(
RuntimeError: The memory capacity is unbalanced. Some GPUs may be occupied by other processes. pre_model_load_memory=11.4, \
local_gpu_memory=23.1, local_gpu_memory * 0.9=20.79
"""


def out_of_memory(log: Log, clock: RigClock) -> None:
    """The GPU has too little memory for the weights."""
    _die(log, clock, (_RECORDED / "out-of-memory.txt").read_text(encoding="utf-8"), rank=1)


def occupied(log: Log, clock: RigClock) -> None:
    """Somebody else's process lies on one of the GPUs."""
    _die(log, clock, _OCCUPIED, rank=2)


def misleading(log: Log, clock: RigClock) -> None:
    """One rank's mistake, and after it what the others and the parent say about the loss of it: the last traceback is no cause."""
    _die(log, clock, _TRUE, _OTHER_RANK, rank=3, parent=_PARENT)


def _die(log: Log, clock: RigClock, *tracebacks: str, rank: int, parent: str = "") -> None:
    """As SGLang does: the first traceback is the cause, then it kills its own tree."""
    clock.real()
    log.at = None
    log.raw("\n")
    for number, text in enumerate(tracebacks):
        log.line("Scheduler hit an exception: " + text, (rank + number) % log.ranks)
    log.raw(parent)
    log.line("Received sigquit from a child process. It usually means the child failed.")
    os.kill(os.getpid(), signal.SIGKILL)


def killed_scheduler(log: Log) -> None:
    """A scheduler is gone while the server serves: SGLang's watcher tells it within a second, and ends the tree."""
    log.line("Subprocess scheduler_TP1 (pid=4711) crashed with exit code -9. Triggering SIGQUIT for cleanup...")
    log.line("SIGQUIT received. signum=None, frame=None. It usually means one child failed.")
    os.kill(os.getpid(), signal.SIGKILL)


def hang(clock: RigClock) -> None:
    """A deadlock: the process lives and does nothing, rig time goes on fast. Only a signal ends it."""
    clock.fast_until(clock.time() + HANG_S)
    while True:
        signal.pause()


def stop(clock: RigClock) -> None:
    """Somebody stops the process; it goes on where it was when it is continued."""
    clock.fast_until(clock.time() + HANG_S)
    os.kill(os.getpid(), signal.SIGSTOP)
    clock.real()


def rotate(path: Path) -> None:
    """As logrotate's copytruncate: the log is copied away, and the file that the server writes to is emptied."""
    shutil.copyfile(path, f"{path}.1")
    os.truncate(path, 0)
