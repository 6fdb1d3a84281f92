"""Collection: power levels, the fixed order, what is left out and why, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_sglang import markers, options
from pytest_sglang.hooks.active import Active, Planned

if TYPE_CHECKING:
    from pytest_sglang.rig.model import Rig
    from pytest_sglang.session.options import RunOptions

LEVEL = "power_level_w"
"""Fixture by which a test gets the power level it runs at."""


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Power-dependent tests run once a level; ``at_power`` keeps the levels that it names."""
    from pytest_sglang.session.checks import STANDARD

    mark = metafunc.definition.get_closest_marker("sglang_check")
    standard = STANDARD.get(str(mark.args[0])) if mark is not None and mark.args else None
    names = {each.name for each in metafunc.definition.iter_markers()}
    per_power = LEVEL in metafunc.fixturenames or bool(names & {"at_power", "min_throughput"})
    if not (per_power or (standard is not None and standard.per_power)):
        return
    levels = options.power_levels(_power(metafunc.config))
    only = markers.powers(metafunc.definition)
    chosen = [level for level in levels if only is None or any(abs(level - each) <= 1.0 for each in only)]
    if LEVEL not in metafunc.fixturenames:
        metafunc.fixturenames.append(LEVEL)
    if chosen:
        metafunc.parametrize(LEVEL, chosen, indirect=True, ids=[f"{level:g}W" for level in chosen])
    elif only is not None:
        reason = f"for {', '.join(f'{each:g} W' for each in only)} only; --power={_power(metafunc.config) or 'not given'}"
        metafunc.parametrize(LEVEL, [pytest.param(None, marks=pytest.mark.skip(reason=reason))], indirect=True, ids=["no-level"])


def _power(config: pytest.Config) -> str | None:
    value: str | None = config.getoption("sglang_power")
    return value if value is not None else config.getini("sglang_power") or None


def activate(config: pytest.Config, before: list[pytest.Item], items: list[pytest.Item]) -> Active | None:
    """Read the rig file, order the checks, note what is not checked. Raises UsageError before anything is touched.

    None where tests are only listed and no rig file tells which of them are promised.
    """
    from pytest_sglang.rig.load import RigError
    from pytest_sglang.session import checks, promise
    from pytest_sglang.session.errors import SessionError

    refuse(config, before)
    settings = options.run_options(config)
    if config.option.collectonly and not promise.named(settings):
        return None
    try:
        rig = promise.resolve(settings)
    except (RigError, SessionError) as error:
        raise pytest.UsageError(str(error)) from None
    every = [_planned(item) for item in before]
    _unique(every)
    offered = {plan.spec.id for plan in every}
    left_out = promise.left_out(rig, settings, offered)
    every = sorted((plan for plan in every if plan.spec.id not in left_out), key=lambda plan: _place(plan, settings))
    chosen = set(items)
    kept = {plan.item: plan for plan in every if plan.item in chosen}
    active = Active(config, settings, rig, kept, every, not_promised=tuple(each for each in left_out if each != checks.BASELINE))
    ours = set(before)
    others = [item for item in items if item not in ours]
    items[:] = [*kept, *others]
    _note_missing(active, offered, rig, settings)
    return active


def _planned(item: pytest.Item) -> Planned:
    callspec = getattr(item, "callspec", None)
    power = callspec.params.get(LEVEL) if callspec is not None else None
    function: Any = getattr(item, "function", None)
    text = (getattr(function, "__doc__", None) or item.name).strip()
    return Planned(item, markers.check_spec(item), markers.wanted(item), power, " ".join(text.split("\n\n")[0].split()))


def _unique(every: list[Planned]) -> None:
    """Two tests with one id would overwrite each other in run.json: the later ones are told apart by their parameters, or refused."""
    seen: dict[tuple[str, float | None], Planned] = {}
    from dataclasses import replace

    for plan in every:
        if plan.key in seen:
            if seen[plan.key].item.nodeid.split("[")[0] != plan.item.nodeid.split("[")[0] and plan.item.get_closest_marker(
                "sglang_check"
            ):
                raise pytest.UsageError(
                    f"{plan.item.nodeid} and {seen[plan.key].item.nodeid} have the same check id {plan.spec.id!r}"
                )
            inside = plan.item.nodeid.split("::", 1)[-1]
            plan.spec = replace(plan.spec, id=f"{plan.spec.id}:{inside}" if plan.key in seen else plan.spec.id)
        seen[plan.key] = plan


def _place(plan: Planned, settings: RunOptions) -> tuple[int, int, int]:
    """Stages in their order; later power levels as groups of their own within the measurements."""
    from pytest_sglang.session.checks import STAGES

    measure = STAGES.index("measure")
    levels = list(settings.power_levels_w)
    group = levels.index(plan.power_w) if plan.power_w in levels else 0
    if group and plan.spec.stage_index <= measure:
        return (measure, group, plan.spec.stage_index)
    return (plan.spec.stage_index, group if plan.spec.stage_index == measure else 0, plan.spec.stage_index)


def _note_missing(active: Active, offered: set[str], rig: Rig, settings: RunOptions) -> None:
    """Promised checks that no collected test makes, when the acceptance suite is in play; deselected ones; levels."""
    from pytest_sglang.session.checks import STANDARD, promised

    for plan in active.every:
        if plan.item not in active.items:
            active.unchecked[plan.key] = "deselected"
    if offered & STANDARD.keys():
        for check_id in promised(rig):
            if check_id not in offered:
                active.unchecked[(check_id, None)] = "not collected"


def _ini(config: pytest.Config, name: str) -> bool:
    try:
        return str(config.getini(name) or "0").strip() not in ("", "0")
    except (ValueError, KeyError):
        return False


def refuse(config: pytest.Config, items: list[pytest.Item]) -> None:
    """xdist and reruns: parallel workers on one rig spoil the measurement, a rerun turns a flaky rig green."""
    if getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None):
        raise pytest.UsageError("checks of a rig do not run in parallel: leave -n away (e.g. pytest acceptance/ -p no:xdist)")
    if hasattr(config, "workerinput"):
        raise pytest.UsageError("checks of a rig do not run on xdist workers: leave -n away")
    if getattr(config.option, "reruns", None) or getattr(config.option, "force_reruns", None) or _ini(config, "reruns"):
        raise pytest.UsageError("a check of a rig is not rerun until it passes: leave --reruns away")
    for item in items:
        if item.get_closest_marker("flaky") is not None:
            raise pytest.UsageError(f"{item.nodeid}: a check of a rig is not rerun until it passes: remove the flaky marker")
