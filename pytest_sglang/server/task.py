"""A call in the background whose end is looked for, never waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Task(Generic[Result]):
    """One call at a time in a thread that never keeps the run from ending."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._result: list[Result] = []
        self._error: list[BaseException] = []
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True, name="pytest-sglang-probe")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._error.append(error)

    def result(self) -> Result | None:
        """The result, None while it runs. Raises what the call raised."""
        if self._thread.is_alive():
            return None
        if self._error:
            raise self._error[0]
        return self._result[0]
