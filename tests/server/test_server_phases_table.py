"""Each line that the facts about SGLang 0.5.10 to 0.5.23 name is known to the table."""

from __future__ import annotations

import pytest

from pytest_sglang.server import inside, log, phases, versions

OLD, NEW, BOTH = ("0.5.10", "0.5.11"), ("0.5.23",), ("0.5.10", "0.5.11", "0.5.23")
STAGES = [
    (OLD, "arguments", "server_args=ServerArgs(model_path='m')"),
    (NEW, "arguments", "server_args={'model_path': 'm'}"),
    (OLD, "distributed", "Init torch distributed begin."),
    (NEW, "distributed", "Init parallel begin."),
    (BOTH, "weights", "Load weight begin. avail mem=139.13 GB"),
    (BOTH, "weights_end", "Load weight end. elapsed=0.27 s, type=LlamaForCausalLM, avail mem=125.61 GB, mem usage=13.52 GB."),
    (BOTH, "weights_end", "Load weight end. elapsed=9.1 s, type=X, quant=awq_marlin, bits=4, avail mem=1 GB, mem usage=-0.10 GB."),
    # a flag of 0.5.23; the older ones never say it
    (BOTH, "weights_end", "Load weight end. Committed real weights after CUDA graph capture in 4.1 s (2 GB)"),
    (BOTH, "kv_cache_end", "Memory pool end. avail mem=4.91 GB"),
    (OLD, "decode", "Capture cuda graph begin. This can take up to several minutes. avail mem=4.82 GB"),
    (NEW, "decode", "Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, avail mem=4.82 GB"),
    (NEW, "decode", "Capture draft verify CUDA graph begin. backend=full, num_tokens_per_req=4, avail mem=4.82 GB"),
    (OLD, "decode_end", "Capture cuda graph end. Time elapsed: 29.50 s. mem usage=-0.31 GB. avail mem=4.51 GB."),
    (NEW, "decode_end", "Capture target decode CUDA graph end. bs=[1, 2, 4], elapsed=9.90 s, mem usage=0.1 GB, avail mem=1 GB."),
    (OLD, "prefill", "Capture piecewise CUDA graph begin. avail mem=1 GB"),
    (NEW, "prefill", "Capture target prefill CUDA graph begin. backend=breakable, num_tokens=[4, 8], avail mem=1 GB"),
    (OLD, "prefill_end", "Capture piecewise CUDA graph end. Time elapsed: 14.1 s. mem usage=0.1 GB. avail mem=1 GB."),
    (NEW, "prefill_end", "Capture draft prefill CUDA graph end. elapsed=9.1 s, mem usage=1 GB, avail mem=1 GB."),
    (
        BOTH,
        "capacity",
        "max_total_num_tokens=98304, chunked_prefill_size=2048, max_prefill_tokens=16384, max_running_requests=48, context_len=32768",
    ),
    (BOTH, "capacity", "max_total_num_tokens=98304, chunked_prefill_size=None, max_prefill_tokens=16384"),
    (NEW, "timings", "Engine startup timings (s): load_weight=0.02, cuda_graph={prefill=0.00, decode=65.72}, tokenizer_e2e=73.63"),
    (BOTH, "port_open", "Uvicorn running on http://127.0.0.1:30000 (Press CTRL+C to quit)"),
    (BOTH, "ready", "The server is fired up and ready to roll!"),
]


@pytest.mark.parametrize(("of", "mark", "line"), STAGES)
def test_a_stage_is_recognised_in_its_versions_only(of: tuple[str, ...], mark: str, line: str) -> None:
    for version in ("0.5.10", "0.5.11", "0.5.23"):
        marks = [form.mark for form, pattern in versions.compiled(versions.parse(version)) if pattern.search(line)]
        assert marks == ([mark] if version in of else [])


@pytest.mark.parametrize(("of", "mark", "line"), STAGES)
def test_a_stage_that_is_only_quoted_is_none(of: tuple[str, ...], mark: str, line: str) -> None:
    quoted = f"Receive: obj=GenerateReqInput(text='{line}')"
    assert [form.mark for form, pattern in versions.compiled(None) if pattern.search(quoted)] == []


NOTES = [
    ("kv_tokens", "344797", "KV Cache is allocated. #tokens: 344797, K size: 21.04 GB, V size: 21.04 GB"),
    ("kv_tokens", "98304", "KV Cache is allocated. dtype: torch.bfloat16, #tokens: 98304, K size: 0.00 GB, V size: 0.00 GB"),
    ("kv_tokens", "7", "Post-capture KV sizing: KV cache allocated. dtype: torch.bfloat16, #tokens: 7, K size: 1 GB"),
    ("kv_dtype", "torch.bfloat16", "Using KV cache dtype: torch.bfloat16"),
    ("kv_dtype", "torch.float16", "SWA KV Cache is allocated. dtype: torch.float16, #tokens: 7, KV size: 1 GB"),
    ("weights_type", "LlamaForCausalLM", "Load weight end. elapsed=0.27 s, type=LlamaForCausalLM, avail mem=1 GB, mem usage=1 GB."),
    ("quantization", "awq_marlin", "Load weight end. elapsed=9 s, type=X, quant=awq_marlin, avail mem=1 GB, mem usage=1 GB."),
    ("decode_sizes", "1, 2, 4, 8", "Capture cuda graph bs [1, 2, 4, 8]"),
    ("decode_sizes", "1, 2", "Capture target decode CUDA graph end. bs=[1, 2], elapsed=9.90 s, mem usage=0 GB, avail mem=1 GB."),
    ("custom_all_reduce", "Registering 92 cuda graph addresses", "Registering 92 cuda graph addresses"),
    ("custom_all_reduce", "Custom allreduce v2 initialized", "Custom allreduce v2 initialized successfully"),
    ("flashinfer_autotune", "Running FlashInfer autotune", "Running FlashInfer autotune with cache: /x"),
    ("flashinfer_autotune", "FlashInfer autotune completed", "FlashInfer autotune completed."),
]


@pytest.mark.parametrize(("name", "value", "line"), NOTES)
def test_what_a_start_tells_of_itself_is_noted(name: str, value: str, line: str) -> None:
    found = phases.timeline(log.split(f"[2026-01-02 03:04:05 TP0] {line}\n"))
    assert found.notes[name] == value


BARS = [
    ("weights", "Loading safetensors checkpoint shards:  44% Completed | 4/9 [00:03<00:04,  1.10it/s]", "4/9"),
    ("weights", "Multi-thread loading shards: 100% Completed | 1/1 [00:00<00:00, 889.00it/s]", "1/1"),
    ("capture_decode", "Capturing batches (bs=8 avail_mem=83.26 GB):  25%|██▌       | 1/4 [00:28<01:25, 28.59s/it]", "1/4 (bs=8)"),
    (
        "capture_prefill",
        "Compiling num tokens (num_tokens=4):   2%|▏         | 1/58 [00:00<00:45,  1.24it/s]",
        "1/58 (num_tokens=4)",
    ),
    (
        "capture_prefill",
        "Capturing num tokens (num_tokens=4 avail_mem=9.1 GB):  50%|█████     | 29/58 [00:01<00:01, 20.1it/s]",
        "29/58 (num_tokens=4)",
    ),
    (
        "capture_prefill",
        "Capturing prefill shape (num_tokens=64 avail_mem=9.1 GB): 10%|█         | 1/10 [00:01<00:09]",
        "1/10 (num_tokens=64)",
    ),
]


@pytest.mark.parametrize(("phase", "line", "text"), BARS)
def test_a_bar_belongs_to_the_phase_of_its_label(phase: str, line: str, text: str) -> None:
    bars = inside.Bars()
    bars.feed(line)
    assert {name: each.text for name, each in bars.found().items()} == {phase: text}


def test_a_bar_of_anything_else_belongs_to_no_phase() -> None:
    bars = inside.Bars()
    bars.feed("Batches:  50%|█████     | 1/2 [00:01<00:01,  1.00s/it]")
    bars.feed("token usage: 50%|x")
    assert bars.found() == {}


SIGNS = [
    (
        "custom-all-reduce-off",
        "Custom allreduce is disabled because it's not supported on more than two PCIe-only GPUs. To silence",
    ),
    ("custom-all-reduce-off", "CustomAllreduce is disabled because your platform lacks GPU P2P capability or P2P test failed."),
    ("custom-all-reduce-off", "Custom allreduce is disabled due to an unsupported world size: 3. Supported world sizes: [2, 4]"),
    ("custom-all-reduce-off", "Custom allreduce is disabled because this process group spans across nodes."),
    ("custom-all-reduce-off", "Setup Custom allreduce failed with invalid literal for int(). To silence this warning, specify"),
    ("torch-compile-off", "The model is not compatible (e.g. dynamic rope scaling). Disabling torch.compile."),
    ("prefill-graphs-off", "Disable piecewise CUDA graph because --disable-piecewise-cuda-graph is set"),
    ("prefill-graphs-off", "Disable prefill CUDA graph because cuda_graph_config resolved prefill.backend='disabled'"),
    ("prefill-graphs-off", "Breakable CUDA graph is incompatible with LoRA; disabling prefill CUDA graph"),
    ("decode-graphs-off", "Cuda graph is disabled because of using torch native attention backend"),
    ("feature-off", "Overlap schedule is disabled because of using x"),
    ("feature-off", "Overlap scheduler is disabled"),
    ("feature-off", "Disabling overlap schedule since x"),
    ("feature-off", "Mixed chunked prefill is disabled because of x"),
    ("fallback", "FlashInfer is not available. Falling back to triton"),
    ("fallback", "fa3 not found, will fallback to triton"),
    (
        "kv-cache-full",
        "KV cache pool is full. Retract requests. #retracted_reqs: 1, #new_tokens_gained: 2, #new_token_ratio: 0.1 -> 0.2",
    ),
    ("request-shortened", "Capping max_new_tokens of request x from 9 to 8"),
    ("streaming-backlog", "Streaming backlog: rid=abc, coalescing 7 queued chunks"),
    ("prefill-graph-recompiled", "PCG capture stream is not set"),
    ("cache-entry-broken", "fx graph cache unable to load compiled graph"),
    ("compiled-after-ready", "Triton kernel 'fused' took 3.2 s to compile after serving started. x"),
    ("loaded-after-ready", "Triton kernel 'fused' device-loaded after serving started (free device mem: 0.5 GB)"),
    ("slow-step", "Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=True)"),
    ("internal-port-taken", "port 34567 is in use. Waiting for 5 seconds"),
    ("unhealthy", "Health check failed. Server couldn't get a response from detokenizer for last 20 seconds."),
    ("unhealthy", "Signal SIGTERM received while health check failed. Force exiting."),
    ("schedulers-outlived", "Schedulers still alive 15s after ShutdownReq, killing them"),
]


@pytest.mark.parametrize(("kind", "line"), SIGNS)
def test_a_silent_degradation_is_found_and_kills_nobody(kind: str, line: str) -> None:
    found = phases.timeline(log.split(f"[2026-01-02 03:04:05 TP1] {line}\n"))
    assert [each.kind for each in found.findings] == [kind]
    assert found.failure is None


FAILURES = [
    ("exception", "Scheduler hit an exception: Traceback (most recent call last):"),
    ("exception", "DataParallelController hit an exception: Traceback (most recent call last):"),
    ("killed-itself", "Received sigquit from a child process. It usually means the child failed."),
    ("killed-itself", "SIGQUIT received. signum=3, frame=None. It usually means one child failed."),
    ("rank-died", "Rank 2 scheduler died during initialization (exit code: -9). x"),
    ("rank-died", "TP rank 3 could finish the model loading, but there are other ranks that didn't finish loading."),
    ("rank-died", "Initialization failed. Please see the error messages above."),
    ("process-died", "Subprocess scheduler_0 (pid=12) crashed with exit code -6. Triggering SIGQUIT"),
    ("out-of-memory", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static."),
    ("out-of-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    ("out-of-memory", "Prefill out of memory. Try to lower your batch size."),
    ("out-of-memory", "alloc_req_slots runs out of memory"),
    ("capture-failed", "Capture cuda graph failed: CUDA out of memory"),
    ("capture-failed", "Capture prefill CUDA graph failed: x"),
    ("gpu-occupied", "The memory capacity is unbalanced. Some GPUs may be occupied by other processes."),
    ("nccl", "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:77"),
    ("nccl", "[rank0]:[E102] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)"),
    ("watchdog", "Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)"),
    ("port-taken", "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use"),
    ("port-taken", "Port is already in use."),
    ("warmup-failed", "Initialization failed. warmup error: Traceback"),
]


@pytest.mark.parametrize(("kind", "line"), FAILURES)
def test_a_failure_is_found_and_told_with_a_remedy(kind: str, line: str) -> None:
    found = phases.timeline(log.split(f"[2026-01-02 03:04:05 TP1] {line}\n"))
    assert found.failure is not None
    assert found.failure.kind == kind
    told = [each for each in found.findings if each.severity == "fail"]
    assert len(told) == 1
    assert told[0].remedy


ENDINGS = [
    "SIGTERM received. signum=None frame=None. Draining requests and shutting down...",
    "kill_process_tree called: parent_pid=26830, include_parent=True, pid=26830",
    "INFO:     Finished server process [27388]",
]


@pytest.mark.parametrize("line", ENDINGS)
def test_a_server_that_ends_says_so(line: str) -> None:
    assert phases.timeline(log.split(f"[2026-01-02 03:04:05] {line}\n")).ended_at is not None


def test_an_older_servers_health_is_no_readiness_of_this_start() -> None:
    text = (
        "[2026-01-02 03:04:05] server_args=ServerArgs(model_path='m')\n"
        '[2026-01-02 03:04:09] INFO:     127.0.0.1:1 - "GET /health HTTP/1.1" 200 OK\n'
    )
    assert phases.timeline(log.split(text)).ready_at is None
    port = "[2026-01-02 03:05:09] INFO:     Uvicorn running on http://127.0.0.1:1 (Press CTRL+C to quit)\n"
    health = '[2026-01-02 03:05:19] INFO:     127.0.0.1:1 - "GET /health HTTP/1.1" 200 OK\n'
    found = phases.timeline(log.split(text + port + health))
    assert found.ready_at is not None
    assert found.launched_at is not None
    assert found.ready_at - found.launched_at == 74


def test_weights_that_are_committed_after_the_capture_keep_the_phases_in_order() -> None:
    text = "".join(
        f"[2026-01-02 03:00:{second:02d}] {line}\n"
        for second, line in [
            (0, "server_args={'model_path': 'm'}"),
            (5, "Init parallel begin."),
            (8, "Load weight begin. avail mem=20 GB"),
            (10, "Memory pool end. avail mem=1 GB"),
            (11, "Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, avail mem=1 GB"),
            (30, "Capture target decode CUDA graph end. bs=[1], elapsed=18.9 s, mem usage=1 GB, avail mem=1 GB."),
            (34, "Load weight end. Committed real weights after CUDA graph capture in 4.1 s (2 GB)"),
            (35, "INFO:     Uvicorn running on http://127.0.0.1:1 (Press CTRL+C to quit)"),
            (40, "The server is fired up and ready to roll!"),
        ]
    )
    found = phases.timeline(log.split(text))
    assert [phase.id for phase in found.phases] == [
        *("arguments", "distributed", "weights", "kv_cache", "capture_decode", "port_open", "warmup", "ready")
    ]
    assert sum((phase.end_s or 0) - phase.begin_s for phase in found.phases) == 40
