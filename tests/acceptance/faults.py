"""Fault x check, compared exactly. A verdict is "pass", "fail", the id of the check because of which it is inconclusive, or
"inconclusive" where the reason is the check's own."""

from __future__ import annotations

CHECKS = (
    "gpu-identity",
    "power-limit",
    "nvlink",
    "server-identity",
    "ready",
    "findings",
    "decode-throughput",
    "energy-per-token",
    "throttling",
    "warm-restart",
    "cold-start",
)


def row(**different: str) -> dict[str, str]:
    """Every check passes but the named ones (with _ for -)."""
    named = {name.replace("_", "-"): verdict for name, verdict in different.items()}
    assert set(named) <= set(CHECKS), named
    return {check: named.get(check, "pass") for check in CHECKS}


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
        energy_per_token="server-identity",
        throttling="server-identity",
        warm_restart="server-identity",
        cold_start="server-identity",
    ),
    "early-stop": row(
        ready="fail",
        decode_throughput="ready",
        energy_per_token="ready",
        throttling="ready",
        warm_restart="ready",
        cold_start="ready",
    ),
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
    "cache-cold": {"warm-restart": "new kernel"},
    "never-ready": {"warm-restart": "capture_decode"},
    "dies-loading": {"warm-restart": "OutOfMemoryError"},
    "wrong-model": {"server-identity": "model"},
    "early-stop": {"ready": "13"},
}
"""What the message or cause of the check that notices it must name."""


def verdicts(run: dict[str, object]) -> dict[str, str]:
    """A run.json in the terms of the table."""
    checks = run["checks"]
    assert isinstance(checks, list)
    return {check["id"]: _because(check) if check["verdict"] == "inconclusive" else check["verdict"] for check in checks}


def _because(check: dict[str, str]) -> str:
    return check["inconclusive_because"] if check["inconclusive_because"] in CHECKS else "inconclusive"


def exit_code(fault: str) -> int:
    """Of a run of the whole suite with this fault."""
    verdicts_of_it = set(TABLE[fault].values())
    return 1 if "fail" in verdicts_of_it else 6 if verdicts_of_it - {"pass"} else 0
