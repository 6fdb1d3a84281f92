"""Fault x check, compared exactly. A verdict is "pass", "fail", the id of the check because of which it is inconclusive, or
"inconclusive" where the reason is the check's own."""

from __future__ import annotations

CHECKS = (
    "gpu-identity",
    "power-limit",
    "nvlink",
    "server-identity",
    "ready",
    "placement",
    "findings",
    "decode-throughput",
    "energy-per-token",
    "throttling",
    "links-under-load",
    "warm-restart",
    "cold-start",
    "answers",
    "gpu-health",
    "kernel-log",
)


def row(**different: str) -> dict[str, str]:
    """Every check passes but the named ones (with _ for -); one with "" is not checked."""
    named = {name.replace("_", "-"): verdict for name, verdict in different.items()}
    assert set(named) <= set(CHECKS), named
    return {check: named.get(check, "pass") for check in CHECKS if named.get(check) != ""}


_NO_LEVEL = row(
    power_limit="fail",
    decode_throughput="power-limit",
    energy_per_token="power-limit",
    throttling="power-limit",
    warm_restart="power-limit",
    cold_start="power-limit",
)
"""A card is not at the promised level: then no rate, no energy and no start says anything about it."""

HARDWARE: dict[str, dict[str, str]] = {
    "slow-decode": row(decode_throughput="fail"),
    "power-limit-lost": _NO_LEVEL,
    "power-limit-clamped": _NO_LEVEL,
    "persistence-off": _NO_LEVEL,
    "thermal-slowdown": row(decode_throughput="fail", throttling="fail"),
    # a braked card makes its partners wait at full power
    "power-brake": row(decode_throughput="fail", energy_per_token="fail", throttling="fail"),
    "energy-counter-reset": row(energy_per_token="inconclusive"),
    "energy-counter-missing": row(),
    "energy-unreadable": row(energy_per_token="inconclusive"),
    "nvlink-dead": row(nvlink="fail", decode_throughput="fail"),
    "nvlink-partial": row(nvlink="fail"),
    "nvlink-crossed": row(nvlink="fail"),
    "nvlink-errors": row(links_under_load="fail"),
    # a promised card on which the server does not run has no load
    "server-misplaced": row(
        placement="fail", decode_throughput="fail", energy_per_token="placement", throttling="placement", links_under_load="fail"
    ),
    "pcie-x4": row(
        gpu_identity="fail",
        power_limit="gpu-identity",
        nvlink="gpu-identity",
        placement="gpu-identity",
        decode_throughput="power-limit",
        energy_per_token="power-limit",
        throttling="power-limit",
        links_under_load="fail",
        warm_restart="gpu-identity",
        cold_start="gpu-identity",
    ),
    "pcie-gen1": row(links_under_load="fail"),
    "pcie-replays": row(links_under_load="fail"),
    "rank-idle": row(throttling="fail", links_under_load="fail"),
    "counters-hidden": row(links_under_load="inconclusive"),
    # what a card does not count nobody can promise: told, and listed as not checked
    "counters-missing": row(),
    "memory-hidden": row(
        placement="inconclusive",
        energy_per_token="placement",
        throttling="placement",
        warm_restart="inconclusive",
        cold_start="inconclusive",
    ),
    "ecc-errors": row(gpu_health="fail"),
    "row-remap-pending": row(gpu_health="fail"),
    "xid-79": row(
        decode_throughput="fail",
        energy_per_token="decode-throughput",
        throttling="decode-throughput",
        links_under_load="decode-throughput",
        warm_restart="decode-throughput",
        cold_start="decode-throughput",
        answers="decode-throughput",
        gpu_health="fail",
        kernel_log="fail",
    ),
    "foreign-process": row(placement="fail", energy_per_token="placement", throttling="placement"),
    "not-supported": row(
        gpu_identity="inconclusive",
        power_limit="gpu-identity",
        nvlink="gpu-identity",
        placement="gpu-identity",
        decode_throughput="power-limit",
        energy_per_token="power-limit",
        throttling="power-limit",
        links_under_load="inconclusive",
        warm_restart="gpu-identity",
        cold_start="gpu-identity",
    ),
    "kernel-log-hidden": row(kernel_log="inconclusive"),
}

REFUSED: dict[str, str] = {"driver-mismatch": "different versions"}
"""Faults with which nothing can be judged: exit code 4, and what the message must name."""

CACHES: dict[str, dict[str, str]] = {
    "cache-cold": row(warm_restart="fail"),
    "cache-upgraded": row(warm_restart="fail"),
    "cache-flags-changed": row(warm_restart="fail"),
    "cache-relocated": row(warm_restart="fail"),
    "cache-unused": row(warm_restart="fail"),
    "cache-autotune-lost": row(warm_restart="fail"),
    "cache-graphs-lost": row(warm_restart="fail"),
    "cache-late": row(warm_restart="fail"),
    # a renamed cache would be lost there: the cold start is not made
    "cache-in-tmp": row(cold_start=""),
    "cache-private-tmp": row(findings="fail", warm_restart="fail", cold_start=""),
    "cache-in-memory": row(cold_start=""),
    "cache-aged": row(),
    "cache-in-container-layer": row(),
    "cache-other-owner": row(),
    "cache-read-only": row(),
    "cache-little-space": row(),
    "cache-moved": row(findings="fail"),
    "cache-incomplete": row(findings="fail"),
    "cache-broken": row(findings="fail"),
    "cache-leftover": row(),
    "cache-duplicate": row(),
    "cache-stale": row(),
}

FINDINGS: dict[str, str] = {
    "cache-private-tmp": "cache-in-private-tmp",
    **{
        name: name
        for name in (
            "cache-in-tmp",
            "cache-in-memory",
            "cache-aged",
            "cache-in-container-layer",
            "cache-other-owner",
            "cache-read-only",
            "cache-little-space",
            "cache-moved",
            "cache-incomplete",
            "cache-broken",
            "cache-leftover",
            "cache-duplicate",
            "cache-stale",
        )
    },
}
"""Kind of the finding by which a fault shows in the check of findings, whether that fails or not; a clean rig has none of these."""

_NOT_BACK = row(warm_restart="fail", cold_start="warm-restart", answers="warm-restart")
"""The server does not come back from its first restart."""

SERVER: dict[str, dict[str, str]] = {
    "never-ready": _NOT_BACK,
    "dies-loading": _NOT_BACK,
    "wrong-model": row(
        server_identity="fail",
        ready="server-identity",
        placement="server-identity",
        findings="server-identity",
        decode_throughput="server-identity",
        energy_per_token="server-identity",
        throttling="server-identity",
        links_under_load="server-identity",
        warm_restart="server-identity",
        cold_start="server-identity",
        answers="server-identity",
    ),
    "sigterm-ignored": row(warm_restart="fail", cold_start="fail"),
    "orphaned-scheduler": _NOT_BACK,
    "early-stop": row(
        ready="fail",
        decode_throughput="ready",
        energy_per_token="ready",
        throttling="ready",
        links_under_load="ready",
        warm_restart="ready",
        cold_start="ready",
        answers="ready",
    ),
    "inflated-usage": row(decode_throughput="inconclusive", energy_per_token="inconclusive", answers="inconclusive"),
    "nan-tokens": row(
        ready="fail",
        decode_throughput="ready",
        energy_per_token="ready",
        throttling="ready",
        links_under_load="ready",
        warm_restart="ready",
        cold_start="ready",
        answers="ready",
    ),
    "dies-serving": row(
        decode_throughput="fail",
        energy_per_token="decode-throughput",
        throttling="decode-throughput",
        links_under_load="decode-throughput",
        warm_restart="decode-throughput",
        cold_start="decode-throughput",
        answers="decode-throughput",
    ),
    "misleading-crash": _NOT_BACK,
    "stopped": _NOT_BACK,
    "hung-engine": _NOT_BACK,
    "port-opens-early": row(warm_restart="fail", cold_start="fail"),
    "compiles-after-ready": row(warm_restart="fail", cold_start="fail"),
    "impostor": _NOT_BACK,
    "unit-flaps": _NOT_BACK,
    "garbled-answers": row(answers="fail"),
    "wrong-p2p": row(answers="fail"),
    # these only look like faults
    "near-ties": row(),
    "log-silent": row(),
    "log-rotates": row(),
    "random-timing": row(),
}

TABLE: dict[str, dict[str, str]] = {"": row(), **SERVER, **HARDWARE, **CACHES}

CAUSES: dict[str, dict[str, str]] = {
    "slow-decode": {"decode-throughput": "no cause found"},
    "power-limit-lost": {"power-limit": "GPU 2"},
    "power-limit-clamped": {"power-limit": "GPU 3 enforces 220 W, asked 250 W; requested 250 W"},
    "persistence-off": {"power-limit": "GPU 1 persistence mode is off"},
    "thermal-slowdown": {"decode-throughput": "GPU 2 was too hot", "throttling": "GPU 2 sw_thermal_slowdown"},
    "power-brake": {"decode-throughput": "GPU 1 was held by an outside power brake", "throttling": "GPU 1 hw_power_brake_slowdown"},
    "energy-counter-reset": {"energy-per-token": "GPU 0: counter reset"},
    "energy-unreadable": {"energy-per-token": "GPU 2: not supported"},
    "nvlink-dead": {"nvlink": "2-3", "decode-throughput": "NVLink"},
    "nvlink-partial": {"nvlink": "only 3 of 4"},
    "nvlink-crossed": {"nvlink": "GPU 0 is linked to GPU 2"},
    "nvlink-errors": {"links-under-load": "GPU 0 link 1"},
    "server-misplaced": {"placement": "CUDA_VISIBLE_DEVICES=0,1,2,3", "decode-throughput": "GPUs 0, 1, 2, 4"},
    "pcie-x4": {"gpu-identity": "GPU 1 PCIe x4", "links-under-load": "GPU 1 PCIe x4 under load"},
    "pcie-gen1": {"links-under-load": "GPU 1 PCIe gen 1 under load"},
    "pcie-replays": {"links-under-load": "PCIe replays"},
    "rank-idle": {"throttling": "GPU 2 idled while the server worked", "links-under-load": "GPU 2 idled while the server worked"},
    "counters-hidden": {"links-under-load": "GPU 1 PCIe replays not readable: Unknown Error"},
    "memory-hidden": {"warm-restart": "that its GPU memory is free after the stop is not proved: GPU 0: Not Supported"},
    "ecc-errors": {"gpu-health": "GPU 1"},
    "row-remap-pending": {"gpu-health": "waits for its remap"},
    "xid-79": {"decode-throughput": "Xid 79", "gpu-health": "GPU 2", "kernel-log": "fallen off the bus"},
    "foreign-process": {"placement": "ollama"},
    "not-supported": {"gpu-identity": "Not Supported", "links-under-load": "not readable"},
    "kernel-log-hidden": {"kernel-log": "usermod -aG systemd-journal"},
    "cache-cold": {"warm-restart": "new kernel"},
    "cache-upgraded": {"warm-restart": "triton 3.6.0 -> 3.7.0"},
    "cache-flags-changed": {"warm-restart": "--torch-compile-max-bs 4 -> 8"},
    "cache-relocated": {"warm-restart": "the inductor cache was"},
    "cache-unused": {"warm-restart": "the cache is not used: TORCHINDUCTOR_FORCE_DISABLE_CACHES=1"},
    "cache-autotune-lost": {"warm-restart": "autotuning results were not kept"},
    "cache-graphs-lost": {"warm-restart": "the graph caches were empty"},
    "cache-late": {"warm-restart": "at the first requests after ready"},
    "cache-private-tmp": {"findings": "PrivateTmp=yes", "warm-restart": "autotuning"},
    "cache-moved": {"findings": "the files of the old place are used"},
    "cache-incomplete": {"findings": "is missing"},
    "cache-broken": {"findings": "it is cut off"},
    "never-ready": {"warm-restart": "capture_decode"},
    "dies-loading": {"warm-restart": "OutOfMemoryError"},
    "wrong-model": {"server-identity": "model"},
    "early-stop": {"ready": "13"},
    "sigterm-ignored": {"warm-restart": "SIGTERM", "cold-start": "SIGTERM"},
    "orphaned-scheduler": {"warm-restart": "sglang::scheduler"},
    "nan-tokens": {"ready": "NaN happened"},
    "dies-serving": {"decode-throughput": "Subprocess scheduler_TP1 (pid=4711) crashed with exit code -9"},
    "misleading-crash": {"warm-restart": "ValueError: Head size 96 is not supported"},
    "stopped": {"warm-restart": "stopped by somebody (SIGSTOP)"},
    "hung-engine": {"warm-restart": "the port is open, but /health answers 503"},
    "port-opens-early": {"warm-restart": "phase warmup took 2", "cold-start": "phase warmup took 2"},
    "compiles-after-ready": {
        "warm-restart": "the first 2 requests ran at",
        "cold-start": "the first 2 requests ran at",
    },
    "impostor": {"warm-restart": "which the start did not bring"},
    "unit-flaps": {"warm-restart": "restarted it by itself"},
    "garbled-answers": {"answers": "after the warm restart the answers have changed"},
    "wrong-p2p": {"answers": "answers differently when it is asked twice"},
}
"""What the message or cause of the check that notices it must name."""


def verdicts(run: dict[str, object]) -> dict[str, str]:
    """A run.json in the terms of the table."""
    checks = run["checks"]
    assert isinstance(checks, list)
    return {check["id"]: _because(check) if check["verdict"] == "inconclusive" else check["verdict"] for check in checks}


def _because(check: dict[str, str]) -> str:
    named = check["inconclusive_because"]
    return named if named in CHECKS else "inconclusive"


def exit_code(fault: str) -> int:
    """What the run exits with."""
    verdicts_of = set(TABLE[fault].values())
    return 1 if "fail" in verdicts_of else 0 if verdicts_of == {"pass"} else 6


def finding_kinds(run: dict[str, object]) -> set[str]:
    """Kinds of all findings of a run.json's checks."""
    checks = run["checks"]
    assert isinstance(checks, list)
    return {finding["kind"] for check in checks for finding in check["findings"]}


def wrong_findings(fault: str, run: dict[str, object]) -> str:
    """What of FINDINGS is missing, or stands there without its fault; "" = as it should be."""
    seen = finding_kinds(run) & set(FINDINGS.values())
    wanted = {FINDINGS[fault]} if fault in FINDINGS else set()
    return "" if seen == wanted else f"findings {sorted(seen)} instead of {sorted(wanted)}"
