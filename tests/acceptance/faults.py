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
    """Every check passes but the named ones (with _ for -); one with "" is not checked."""
    named = {name.replace("_", "-"): verdict for name, verdict in different.items()}
    assert set(named) <= set(CHECKS), named
    return {check: named.get(check, "pass") for check in CHECKS if named.get(check) != ""}


HARDWARE: dict[str, dict[str, str]] = {
    "slow-decode": row(decode_throughput="fail"),
    "power-limit-lost": row(
        power_limit="fail", decode_throughput="power-limit", warm_restart="power-limit", cold_start="power-limit"
    ),
    "nvlink-dead": row(nvlink="fail", decode_throughput="fail"),
}

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
}

TABLE: dict[str, dict[str, str]] = {"": row(), **SERVER, **HARDWARE, **CACHES}

CAUSES: dict[str, dict[str, str]] = {
    "slow-decode": {"decode-throughput": "no cause found"},
    "power-limit-lost": {"power-limit": "GPU 2"},
    "nvlink-dead": {"nvlink": "2-3", "decode-throughput": "NVLink"},
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
}
"""What the failing check's message or cause must name."""


def verdicts(run: dict[str, object]) -> dict[str, str]:
    """A run.json in the terms of the table."""
    checks = run["checks"]
    assert isinstance(checks, list)
    return {
        check["id"]: check["inconclusive_because"] if check["verdict"] == "inconclusive" else check["verdict"] for check in checks
    }


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
