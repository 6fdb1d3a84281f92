"""Judging one test call: preconditions before it, limits inside it, so that a limit fails the test itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import pytest

from pytest_sglang.hooks.active import Active


def gate(active: Active, item: pytest.Item) -> None:
    """Skip, with the reason, what this run is not allowed or not asked to do; open the check's scope; set its power level."""
    from pytest_sglang.session.errors import NotChecked
    from pytest_sglang.session.scope import CheckScope

    plan = active.items[item]
    deployment = active.opened
    scope = CheckScope(deployment, plan.spec, plan.wanted, plan.power_w)
    active.scopes[item] = scope
    deployment.scope = scope
    if item.get_closest_marker("skip") is not None:
        return  # pytest skips it next, with the reason that stands there
    try:
        if item.get_closest_marker("needs_restart") and not active.options.may_restart:
            raise NotChecked("restarts the server: not without --sglang-allow-restart")
        if item.get_closest_marker("needs_cold_cache") and not active.options.may_go_cold:
            raise NotChecked("sets the caches aside: not without --sglang-allow-cold")
        if item.get_closest_marker("needs_nvlink") and not active.rig.declares_nvlink:
            raise NotChecked("the rig file declares no NVLink")
        scope.gate()
    except NotChecked as reason:
        pytest.skip(str(reason))


@contextmanager
def judged(active: Active, item: pytest.Item) -> Iterator[None]:
    """Around the test call: what it measured is compared with its limits before the call ends."""
    from pytest_sglang.session.errors import CheckFailed, Inconclusive, NotChecked

    scope = active.scopes[item]
    try:
        scope.enter()
        yield
        scope.conclude()
    except NotChecked as reason:
        scope.not_checked = str(reason)
        pytest.skip(str(reason))
    except CheckFailed as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    except Inconclusive as error:
        scope.close_inconclusive(error)
        raise
    except Exception as error:
        told = scope.explain(error)
        if told is not None:
            from pytest_sglang.session import judging

            raise pytest.fail.Exception(f"{told}\n{judging.details(error)}".rstrip(), pytrace=False) from None
        if _through_us(error):
            # a mistake of the plugin's is no fault of the rig's: it could not measure
            broken = Inconclusive(f"internal error of pytest-sglang: {type(error).__name__}: {error}")
            scope.close_inconclusive(broken)
            raise broken from error
        raise


def _through_us(error: Exception) -> bool:
    """The exception came out of this package, not out of the test's own lines (an assertion of the test never does)."""
    import pytest_sglang

    home = os.path.dirname(pytest_sglang.__file__) + os.sep
    frames = [each.tb_frame.f_code.co_filename for each in _chain(error.__traceback__)]
    mine = [name for name in frames if name.startswith(home) and not name.startswith(os.path.join(home, "hooks", ""))]
    return bool(mine) and not isinstance(error, AssertionError)


def _chain(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next
