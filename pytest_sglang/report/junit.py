"""JUnit properties of a run and of its checks: plain names, plain numbers."""

from __future__ import annotations

from pytest_sglang.record.run import Check, Run


def properties(check: Check) -> list[tuple[str, str | float]]:
    """``sglang.verdict``, ``sglang.measured.decode_tok_s`` and kin; what was not read is left out, units are in the names."""
    told: list[tuple[str, str | float | bool | None]] = [
        ("sglang.check", check.id),
        ("sglang.verdict", check.verdict),
        ("sglang.power_w", check.power_w),
        ("sglang.marginal", True if check.marginal else None),
        ("sglang.quantity", check.quantity),
    ]
    if check.limit is not None:
        told += [
            ("sglang.limit_op", check.limit.op),
            ("sglang.limit", check.limit.value),
            ("sglang.limit_unit", check.limit.unit or None),
        ]
    told += [(f"sglang.measured.{name}", measured.value) for name, measured in check.measured.items()]
    told += [("sglang.cause", check.cause), ("sglang.inconclusive_because", check.inconclusive_because)]
    return [
        (name, ("true" if value else "false") if isinstance(value, bool) else value) for name, value in told if value is not None
    ]


def suite_properties(run: Run) -> list[tuple[str, str]]:
    """``sglang.run.verdict`` and kin for the whole suite; what was not checked has no test case that could say so."""
    left_out = [f"{each.id}: {each.reason}" for each in run.not_checked]
    told = [
        ("sglang.run.id", run.run_id),
        ("sglang.run.verdict", run.verdict),
        ("sglang.run.simulated", "true" if run.simulated else "false"),
        ("sglang.run.rig", str(run.rig.get("name") or "")),
        ("sglang.run.power_w", ",".join(f"{level:g}" for level in run.power_levels_w)),
        ("sglang.run.not_checked", "; ".join(left_out)),
    ]
    return [(name, value) for name, value in told if value]
