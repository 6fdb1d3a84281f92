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
    "sigterm-ignored": row(warm_restart="fail", cold_start="fail"),
    "orphaned-scheduler": row(warm_restart="fail", cold_start="warm-restart"),
    "early-stop": row(ready="fail", decode_throughput="ready", warm_restart="ready", cold_start="ready"),
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
    "sigterm-ignored": {"warm-restart": "SIGTERM", "cold-start": "SIGTERM"},
    "orphaned-scheduler": {"warm-restart": "sglang::scheduler"},
}
"""What the failing check's message or cause must name."""


def verdicts(run: dict[str, object]) -> dict[str, str]:
    """A run.json in the terms of the table."""
    checks = run["checks"]
    assert isinstance(checks, list)
    return {
        check["id"]: check["inconclusive_because"] if check["verdict"] == "inconclusive" else check["verdict"] for check in checks
    }
