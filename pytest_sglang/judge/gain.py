"""Is torch.compile, or a bridge, worth what was promised? Two series of rounds that differ in just that one thing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_sglang.judge import stats
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.run import Limit, Measurement, Run

MIN_ROUNDS = 3
BELONGS: Mapping[str, tuple[str, ...]] = {
    "torch_compile": ("enable_torch_compile", "torch_compile_max_bs", "enable_torch_compile_debug_mode"),
    "nvlink": ("enable_p2p_check",),
}
"""Server arguments that say nothing but the thing under test, or follow from it."""
_CARD = ("name", "vbios", "enforced_power_limit_w", "pcie_max_gen", "pcie_width")
_OF_ONE_START = frozenset(
    {
        "port", "nccl_port", "dist_init_addr", "grpc_port", "gated_launch_port", "random_seed", "startup_time", "status", "pid",
        "launch_command", "max_total_num_tokens", "max_req_input_len", "last_gen_throughput", "memory_usage", "load",
        "forward_pass_metrics_ipc_name", "crash_dump_folder", "log_level", "log_level_http", "decode_log_interval", "version",
        "mem_fraction_static",
    }
)  # fmt: skip
"""Entries of /server_info that differ from start to start, or change no token's time.

``mem_fraction_static`` is computed from the memory that is free at the start (0.716 and 0.718 were seen in two starts of one
command line); ``version`` is compared on its own.
"""


def key_of(run: Run) -> dict[str, Any]:
    """What must be equal for two runs to be compared: rig, cards, driver, engine, versions, model, arguments, workload, client.

    Flat, one plain value a name; what the run does not know is absent.
    """
    environment, server = run.environment, dict(run.environment.get("server") or {})
    arguments = dict(server.get("arguments") or {})
    promised = dict(run.rig.get("server") or {})
    nvlink = dict(run.rig.get("nvlink") or {})
    key: dict[str, Any] = {
        "rig": run.rig.get("name"),
        "driver": environment.get("driver"),
        "kernel": environment.get("kernel"),
        "client": environment.get("plugin"),
        "engine": server.get("version") or arguments.get("version"),
        "model": arguments.get("model_path") or promised.get("model"),
        "torch_compile": arguments.get("enable_torch_compile", promised.get("torch_compile")),
        "nvlink": bool(nvlink.get("pairs")),
    }
    for card in environment.get("gpus") or ():
        key.update({f"gpu {card.get('index')} {name}": card.get(name) for name in _CARD})
    key.update({f"package {name}": value for name, value in dict(server.get("packages") or {}).items()})
    key.update({f"workload {name}": value for name, value in dict(run.rig.get("workload") or {}).items() if _shapes_load(name)})
    key.update({f"argument {name}": value for name, value in arguments.items() if name not in _OF_ONE_START})
    return {name: value for name, value in key.items() if value is not None}


def _shapes_load(name: str) -> bool:
    return name in ("prompt_tokens", "output_tokens", "streams", "soak_s", "prompts", "api")


def comparable(now: Mapping[str, Any], before: Mapping[str, Any], differs: str) -> list[str]:
    """Why two runs must not be compared, one line each; empty = exactly ``differs`` differs.

    A name that one of the two does not know counts as a difference: it may well be the reason.
    """
    allowed = {differs, *(f"argument {name}" for name in BELONGS.get(differs, ()))}
    reasons = []
    if now.get(differs) == before.get(differs):
        reasons.append(f"{differs} does not differ: {_shown(now.get(differs))} in both runs")
    for name in sorted({*now, *before} - allowed):
        mine, theirs = now.get(name), before.get(name)
        if mine != theirs:
            reasons.append(f"{name} differs too: {_shown(theirs)} then, {_shown(mine)} now")
    return reasons


def _shown(value: object) -> str:
    text = "not known" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def gain(
    now: Sequence[float],
    before: Sequence[float],
    min_pct: float,
    confidence: float,
    *,
    name: str = "gain",
) -> Judgement:
    """The rates of ``now`` exceed those of ``before`` by at least ``min_pct`` percent.

    Welch's t interval of the difference of the mean logarithms, back as a ratio (Welch 1947, degrees of freedom by Satterthwaite);
    above the limit: pass, below it: fail, else inconclusive. Boots differ: the interval holds for these two boots.
    """
    limit = Limit(">=", min_pct, "%")
    quantity = f"{name}_pct"
    label = name.replace("_", " ")
    few = next(
        (each for each in (now, before) if len(each) < MIN_ROUNDS or min(each) <= 0 or not all(map(math.isfinite, each))), None
    )
    if few is not None:
        which = "this run" if few is now else "the saved run"
        reason = f"{which} has {len(few)} usable rounds, at least {MIN_ROUNDS} are needed"
        message = f"{label} was not measured: {reason}"
        return Judgement(verdict="inconclusive", message=message, quantity=quantity, limit=limit, inconclusive_because=reason)
    middle, low, high = _welch(now, before, confidence)
    measured = {
        quantity: Measurement(middle, "%"),
        "ci_low_pct": Measurement(low, "%"),
        "ci_high_pct": Measurement(high, "%"),
        "rounds": Measurement(min(len(now), len(before)), "count"),
    }
    said = f"{label} {middle:.1f} %, promised at least {min_pct:g} % ({confidence * 100:g} % interval {low:.1f} to {high:.1f} %)"
    if low >= min_pct:
        return Judgement(verdict="pass", message=said, quantity=quantity, measured=measured, limit=limit)
    if high < min_pct:
        cause = f"it brings {middle:.1f} %" if middle > 0 else f"it brings nothing: {-middle:.1f} % slower"
        return Judgement(verdict="fail", message=said, quantity=quantity, measured=measured, limit=limit, cause=cause)
    reason = "the interval holds the limit: measure more rounds in both runs"
    return Judgement(
        verdict="inconclusive",
        message=f"{said}: {reason}",
        quantity=quantity,
        measured=measured,
        limit=limit,
        inconclusive_because=reason,
    )


def _welch(now: Sequence[float], before: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Gain in percent with its interval."""
    means, errors = [], []
    for series in (now, before):
        logs = [math.log(rate) for rate in series]
        means.append(math.fsum(logs) / len(logs))
        errors.append(stats.deviation(logs) ** 2 / len(logs))
    error = math.fsum(errors)
    difference = means[0] - means[1]
    half = 0.0
    if error > 0:
        freedom = error**2 / (errors[0] ** 2 / (len(now) - 1) + errors[1] ** 2 / (len(before) - 1))
        half = _t(confidence, freedom) * math.sqrt(error)
    middle, low, high = (math.expm1(each) * 100 for each in (difference, difference - half, difference + half))
    return middle, low, high


def _t(confidence: float, freedom: float) -> float:
    """t value for degrees of freedom that are no whole number."""
    from scipy import stats as distributions

    return float(distributions.t.isf((1 - confidence) / 2, freedom))
