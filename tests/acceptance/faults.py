"""Fault x check, compared exactly. A verdict is "pass", "fail", or the id of the check because of which it is inconclusive."""

from __future__ import annotations

CHECKS = (
    "gpu-identity",
    "power-limit",
    "nvlink",
    "server-identity",
    "ready",
    "findings",
    "decode-throughput",
    "warm-restart",
    "cold-start",
)


def row(**different: str) -> dict[str, str]:
    """Every check passes but the named ones (with _ for -)."""
    named = {name.replace("_", "-"): verdict for name, verdict in different.items()}
    assert set(named) <= set(CHECKS), named
    return {check: named.get(check, "pass") for check in CHECKS}


HARDWARE: dict[str, dict[str, str]] = {
    "slow-decode": row(decode_throughput="fail"),
    "power-limit-lost": row(
        power_limit="fail", decode_throughput="power-limit", warm_restart="power-limit", cold_start="power-limit"
    ),
    "nvlink-dead": row(nvlink="fail", decode_throughput="fail"),
}

CACHES: dict[str, dict[str, str]] = {
    "cache-cold": row(warm_restart="fail"),
}

SERVER: dict[str, dict[str, str]] = {
    "never-ready": row(warm_restart="fail", cold_start="warm-restart"),
    "dies-loading": row(warm_restart="fail", cold_start="warm-restart"),
    "wrong-model": row(
        server_identity="fail",
        ready="server-identity",
        findings="server-identity",
        decode_throughput="server-identity",
        warm_restart="server-identity",
        cold_start="server-identity",
    ),
    "early-stop": row(ready="fail", decode_throughput="ready", warm_restart="ready", cold_start="ready"),
    "nan-tokens": row(ready="fail", decode_throughput="ready", warm_restart="ready", cold_start="ready"),
    "dies-serving": row(decode_throughput="fail", warm_restart="decode-throughput", cold_start="decode-throughput"),
    "misleading-crash": row(warm_restart="fail", cold_start="warm-restart"),
    "stopped": row(warm_restart="fail", cold_start="warm-restart"),
    "hung-engine": row(warm_restart="fail", cold_start="warm-restart"),
    "port-opens-early": row(warm_restart="fail", cold_start="fail"),
    "compiles-after-ready": row(warm_restart="fail", cold_start="fail"),
    "impostor": row(warm_restart="fail", cold_start="warm-restart"),
    "unit-flaps": row(warm_restart="fail", cold_start="warm-restart"),
    # these only look like faults
    "log-silent": row(),
    "log-rotates": row(),
    "random-timing": row(),
}

TABLE: dict[str, dict[str, str]] = {"": row(), **SERVER, **HARDWARE, **CACHES}

CAUSES: dict[str, dict[str, str]] = {
    "slow-decode": {"decode-throughput": "no cause found"},
    "power-limit-lost": {"power-limit": "GPU 2"},
    "nvlink-dead": {"nvlink": "2-3", "decode-throughput": "NVLink"},
    "cache-cold": {"warm-restart": "new kernel"},
    "never-ready": {"warm-restart": "capture_decode"},
    "dies-loading": {"warm-restart": "OutOfMemoryError"},
    "wrong-model": {"server-identity": "model"},
    "early-stop": {"ready": "13"},
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
}
"""What the failing check's message or cause must name."""


def verdicts(run: dict[str, object]) -> dict[str, str]:
    """A run.json in the terms of the table."""
    checks = run["checks"]
    assert isinstance(checks, list)
    return {
        check["id"]: check["inconclusive_because"] if check["verdict"] == "inconclusive" else check["verdict"] for check in checks
    }
