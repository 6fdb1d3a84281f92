"""What SGLang's log says at each stage of a start, one table keyed by version.

Sources: the source of sglang 0.4.6, 0.5.10, 0.5.11, 0.5.23, and recorded starts of 0.5.11 (one H200) and 0.5.23 (CPU).
The forms are the same on CUDA and on the CPU but for the word in front of "graph". All of them stand at the beginning of a line,
behind the stamp: what a request's text or a traceback quotes is no stage.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from pytest_sglang.record.values import Severity, Value

Version = tuple[int, int, int]
OLDEST: Version = (0, 5, 10)
NEWEST: Version = (0, 5, 23)
_GRAPH = r"(?:CUDA|cuda|CPU|cpu|NPU|npu|XPU|xpu|HIP|hip|MUSA|musa) graph"

Mark = Literal[
    "arguments",
    "distributed",
    "weights",
    "weights_end",
    "kv_cache_end",
    "decode",
    "decode_end",
    "prefill",
    "prefill_end",
    "capacity",
    "timings",
    "port_open",
    "ready",
]


class Form(Value, frozen=True):
    """How one stage is written from ``since`` to ``until`` (both included). Group ``s``: its own seconds, ``n``: a count."""

    mark: Mark
    since: Version
    until: Version
    pattern: str


def _forms() -> tuple[Form, ...]:
    first, last = OLDEST, NEWEST
    echo_changed, graphs_renamed, parallel_renamed = (0, 5, 12), (0, 5, 14), (0, 5, 21)
    before = {each: (*each[:2], each[2] - 1) for each in (echo_changed, graphs_renamed, parallel_renamed)}
    return (
        # dataclass repr until 0.5.11 (seen there), dict repr in 0.5.23 (seen there); between them it was not looked up
        Form("arguments", first, before[parallel_renamed], r"^server_args=ServerArgs\("),
        Form("arguments", echo_changed, last, r"^server_args=\{"),
        Form("distributed", first, before[parallel_renamed], r"^Init torch distributed begin\."),
        Form("distributed", parallel_renamed, last, r"^Init parallel begin\."),
        Form("weights", first, last, r"^Load weight begin\."),
        Form("weights_end", first, last, r"^Load weight end\. (?:elapsed=(?P<s>\d+(?:\.\d+)?) s|Committed real weights)"),
        Form("kv_cache_end", first, last, r"^Memory pool end\."),
        Form("decode", first, before[graphs_renamed], rf"^Capture {_GRAPH} begin\."),
        Form("decode", graphs_renamed, last, rf"^Capture (?:target|draft) (?:decode|verify) {_GRAPH} begin\."),
        Form("decode_end", first, before[graphs_renamed], rf"^Capture {_GRAPH} end\. Time elapsed: (?P<s>\d+(?:\.\d+)?) s"),
        Form(
            "decode_end",
            graphs_renamed,
            last,
            rf"^Capture (?:target|draft) (?:decode|verify) {_GRAPH} end\..*?elapsed=(?P<s>\d+(?:\.\d+)?) s",
        ),
        Form("prefill", first, before[graphs_renamed], rf"^Capture piecewise {_GRAPH} begin\."),
        Form("prefill", graphs_renamed, last, rf"^Capture (?:target|draft) prefill {_GRAPH} begin\."),
        Form(
            "prefill_end", first, before[graphs_renamed], rf"^Capture piecewise {_GRAPH} end\. Time elapsed: (?P<s>\d+(?:\.\d+)?) s"
        ),
        Form(
            "prefill_end",
            graphs_renamed,
            last,
            rf"^Capture (?:target|draft) prefill {_GRAPH} end\..*?elapsed=(?P<s>\d+(?:\.\d+)?) s",
        ),
        Form("capacity", first, last, r"^max_total_num_tokens=(?P<n>\d+), chunked_prefill_size="),
        Form("timings", (0, 5, 20), last, r"^Engine startup timings \(s\): "),
        Form("port_open", first, last, r"^Uvicorn running on \S+"),
        Form("ready", first, last, r"^The server is fired up and ready to roll!"),
    )


FORMS = _forms()


class Sign(Value, frozen=True):
    """A line that tells of something lost or broken. ``advice`` is what to do; the severity is that of its finding."""

    kind: str
    severity: Severity
    pattern: str
    advice: str = ""


# each goes on serving (level INFO or WARNING in SGLang, which prints no level): facts of all versions unless noted
DEGRADATIONS: tuple[Sign, ...] = (
    Sign(
        "custom-all-reduce-off",
        "info",
        r"Custom ?[Aa]ll ?[Rr]educe(?:V2)? is disabled because it's not supported on more than two PCIe-only GPUs",
        "by design on more than two cards without full pairwise NVLink",
    ),
    Sign(
        "custom-all-reduce-off",
        "warn",
        r"is disabled because your platform lacks GPU P2P capability or P2P test failed",
        "check NVLink and peer access between the server's GPUs (nvidia-smi topo -p2p r)",
    ),
    Sign("custom-all-reduce-off", "info", r"is disabled due to an unsupported world size: \d+"),
    Sign("custom-all-reduce-off", "info", r"[Cc]ustom ?[Aa]ll[Rr]educe.* spans across nodes"),
    Sign(
        "custom-all-reduce-off",
        "warn",
        r"Setup Custom allreduce failed with .*?\. To silence this warning",
        "CUDA_VISIBLE_DEVICES must hold plain indices: SGLang parses them as numbers",
    ),
    Sign(
        "torch-compile-off", "fail", r"Disabling torch\.compile\.", "the model runs without torch.compile although it was asked for"
    ),
    Sign("decode-graphs-off", "warn", r"(?:Cuda|CUDA) graph is disabled because ", "decoding runs without graphs"),
    Sign("prefill-graphs-off", "info", r"Disable (?:piecewise|prefill) CUDA graph because |disabling prefill CUDA graph"),
    Sign(
        "feature-off",
        "info",
        r"Overlap scheduler? is disabled|Disabling overlap schedule|Disabling radix cache|Mixed chunked prefill is disabled",
    ),
    Sign(
        "kv-cache-full",
        "warn",
        r"KV cache pool is full\. Retract requests\.",
        "requests are thrown back: raise --mem-fraction-static",
    ),
    Sign("fallback", "info", r"[Ff]alling back|will fallback to"),
    Sign(
        "prefill-graph-recompiled",
        "warn",
        r"PCG capture stream is not set",
        "a graph is compiled while serving: that part runs eagerly (0.5.23), older versions end with an assertion",
    ),
    Sign("request-shortened", "warn", r"Capping max_new_tokens of request", "unset SGLANG_MAX_NEW_TOKENS_LIMIT"),
    Sign(
        "streaming-backlog",
        "warn",
        r"Streaming backlog: rid=.*?coalescing \d+ queued chunks",
        "the event loop lags: token times are inflated",
    ),
    Sign(
        "cache-entry-broken",
        "warn",
        r"fx graph cache unable to load compiled graph",
        "a compile cache entry is broken and is compiled anew",
    ),
    Sign(
        "compiled-after-ready",
        "warn",
        r"Triton kernel '[^']+' took [\d.]+ s to compile after serving started",
        "first requests are slow",
    ),
    Sign("loaded-after-ready", "info", r"Triton kernel '[^']+' device-loaded after serving started"),
    Sign(
        "internal-port-taken",
        "warn",
        r"port \d+ is in use\. Waiting for",
        "an internal TCP port is taken: look for another server or a dead one's processes",
    ),
    Sign(
        "slow-step",
        "warn",
        r"Scheduler watchdog timeout \(self\.watchdog_timeout=[\d.]+, self\.soft=True\)",
        "a step of the scheduler took longer than --soft-watchdog-timeout",
    ),
    Sign(
        "unhealthy",
        "warn",
        r"Health check failed\. Server couldn't get a response from detokenizer|Signal SIGTERM received while health check failed",
        "the server did not answer its own health check: look at the lines before",
    ),
    Sign(
        "schedulers-outlived",
        "warn",
        r"Schedulers still alive \d+s after ShutdownReq, killing them",
        "GPU memory may stay taken for a while after this stop",
    ),
)

# the first of these is the cause; what follows is fallout
FAILURES: tuple[Sign, ...] = (
    Sign(
        "port-taken",
        "fail",
        r"\[Errno 98\] error while attempting to bind|Port is already in use\.",
        "stop what listens on the port",
    ),
    Sign(
        "exception",
        "fail",
        r"(?:Scheduler|DetokenizerManager|TokenizerManager|DataParallelController|DetokenizerProcess) hit an exception: ",
        "its traceback names the place; what the log says after it is fallout",
    ),
    Sign(
        "arguments",
        "fail",
        r"error: (?:unrecognized arguments|ambiguous option|argument |the following arguments are required)",
        "this version does not take that flag: python -m sglang.launch_server --help",
    ),
    Sign(
        "out-of-memory",
        "fail",
        r"torch\.OutOfMemoryError: CUDA out of memory\. Tried to allocate",
        "lower --mem-fraction-static or free the GPU",
    ),
    Sign("out-of-memory", "fail", r"Not enough memory\. Please try to increase --mem-fraction-static"),
    Sign(
        "out-of-memory",
        "fail",
        r"(?:Prefill|Decode) out of memory\. Try to lower your batch size|alloc_req_slots runs out of memory",
    ),
    Sign(
        "capture-failed",
        "fail",
        r"Capture (?:prefill )?(?:cuda|CUDA) graph failed: ",
        "mostly out of memory: lower --mem-fraction-static or the largest captured batch size",
    ),
    Sign(
        "gpu-occupied",
        "fail",
        r"The memory capacity is unbalanced\. Some GPUs may be occupied by other processes",
        "end the other process on these GPUs (nvidia-smi)",
    ),
    Sign(
        "nccl",
        "fail",
        r"NCCL error in: |Watchdog caught collective operation timeout: WorkNCCL\(",
        "a rank is gone or a link is down: look at the other ranks' lines, dmesg (Xid) and nvidia-smi nvlink -s",
    ),
    Sign(
        "watchdog",
        "fail",
        r"Scheduler watchdog timeout \(self\.watchdog_timeout=[\d.]+, self\.soft=False\)",
        "a step of the scheduler hung: its stacks stand before this line",
    ),
    Sign(
        "rank-died",
        "fail",
        r"Rank \d+ scheduler died during initialization \(exit code: -?\d+\)",
        "exit code -9 may be the kernel's OOM killer: journalctl -k; else the rank's own lines tell",
    ),
    Sign("rank-died", "fail", r"TP rank \d+ could finish the model loading, but"),
    Sign(
        "process-died",
        "fail",
        r"Subprocess \S+ \(pid=\d+\) crashed with exit code -?\d+",
        "exit code -9 may be the kernel's OOM killer: journalctl -k; else its own lines before tell",
    ),
    Sign(
        "warmup-failed",
        "fail",
        r"Initialization failed\. warmup error: ",
        "the first request failed or took longer than SGLANG_WARMUP_TIMEOUT (600 s)",
    ),
    # the parent's summary, whatever the cause
    Sign("rank-died", "fail", r"^Initialization failed\.(?! warmup)"),
    Sign(
        "killed-itself",
        "fail",
        r"Received sigquit from a child process|SIGQUIT received\. ",
        "a child failed: the lines before tell which",
    ),
)

AUTOTUNE = re.compile(r"(?:Single|Sub)Process AUTOTUNE benchmarking takes [\d.]+ seconds")
"""One per tuned matmul shape and rank: cold-cache evidence (seen: 10 in a cold start, none in a warm one)."""
SHAPE = re.compile(r"AUTOTUNE ((?:mm|addmm|bmm|\w+)\([^)]*\))")
"""Head of the block that Inductor prints for a shape: ``AUTOTUNE mm(4x4096, 4096x6144)``."""

BARS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("weights", re.compile(r"Loading \w+ checkpoint shards|Multi-thread loading shards")),
    ("capture_decode", re.compile(r"Capturing batches")),
    ("capture_prefill", re.compile(r"Compiling num tokens|Capturing num tokens|Capturing prefill shape")),
)
"""Labels of tqdm's bars by the phase they belong to: rank 0 draws them between the lines of the other ranks."""

NOTES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "kv_tokens",
        re.compile(r"KV Cache is allocated\. .*?#tokens: (?P<value>\d+)|Post-capture KV sizing: .*?#tokens: (?P<later>\d+)"),
    ),
    ("kv_dtype", re.compile(r"^Using KV cache dtype: (?P<value>\S+)|KV Cache is allocated\. dtype: (?P<later>[^,\s]+)")),
    ("weights_type", re.compile(r"^Load weight end\. .*?type=(?P<value>\w+)")),
    ("quantization", re.compile(r"^Load weight end\. .*?quant=(?P<value>\w+)")),
    ("decode_sizes", re.compile(r"^Capture \w+ graph bs \[(?P<value>[\d, ]+)\]|graph end\. bs=\[(?P<later>[\d, ]+)\]")),
    # proof that custom all-reduce took part: v1 while graphs are captured (v1 only in 0.5.23), v2 where it says so (0.5.10, 0.5.11)
    (
        "custom_all_reduce",
        re.compile(r"(?P<value>Registering \d+ cuda graph addresses)|(?P<later>Custom allreduce v2 initialized)"),
    ),
    ("flashinfer_autotune", re.compile(r"^(?P<value>Running FlashInfer autotune)|^(?P<later>FlashInfer autotune completed)")),
)
"""What else a start tells of itself; the newest line counts. Group ``later`` is another form of the same fact."""

ENDING = re.compile(
    r"^(?:SIGTERM received\. signum=|Signal SIGTERM received while|Received sigquit from a child|SIGQUIT received\. "
    r"|kill_process_tree called: .*include_parent=True|Finished server process)"
)
"""A server that ends, by order or by itself."""
OWN_WORDS = re.compile(r"sglang|launch_server|(?:Prefill|Decode) batch, #|kill_process_tree called", re.IGNORECASE)
"""A text without any of these, and without a stage, is not SGLang's log."""


def parse(version: str | None) -> Version | None:
    """``"0.5.11.post1"`` -> (0, 5, 11); None where there is no version in it."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version or "")
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def is_known(version: Version) -> bool:
    """Whether the table speaks of this version."""
    return OLDEST <= version <= NEWEST


def name(version: Version) -> str:
    """(0, 5, 11) -> ``"0.5.11"``."""
    return ".".join(str(part) for part in version)


@lru_cache(maxsize=32)
def compiled(version: Version | None) -> tuple[tuple[Form, re.Pattern[str]], ...]:
    """The forms of a version, all of them where the version is not known."""
    return tuple((form, re.compile(form.pattern)) for form in FORMS if version is None or form.since <= version <= form.until)


@lru_cache(maxsize=1)
def any_sign() -> re.Pattern[str]:
    """Matches where any of ``signs`` does: most lines of a log match none, and one look tells."""
    return re.compile("|".join(f"(?:{sign.pattern})" for sign in (*DEGRADATIONS, *FAILURES)))


@lru_cache(maxsize=1)
def signs() -> tuple[tuple[Sign, re.Pattern[str]], ...]:
    """Degradations and failures with their compiled patterns, failures last."""
    return tuple((sign, re.compile(sign.pattern)) for sign in (*DEGRADATIONS, *FAILURES))
