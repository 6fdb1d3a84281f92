"""The one place where NVML is called: every failure becomes a Missing, a lost card becomes GpuLost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from pytest_sglang.gpu.readings import (
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    GPU_NOT_FOUND,
    NO_PERMISSION,
    NOT_SUPPORTED,
    GpuLost,
    Missing,
    Reading,
)

T = TypeVar("T")
U = TypeVar("U")

_DEPRECATED = 26
_FIELD_ERRORS = {NOT_SUPPORTED: "Not Supported", NO_PERMISSION: "Insufficient Permissions"}
_NEXT_SPELLING = frozenset({FUNCTION_NOT_FOUND, _DEPRECATED})


class Binding(Protocol):
    """What NVML is reached through: the module ``pynvml``, or an object in its place (a stand-in, a test's fake).

    Its other functions are looked up by name, since each of them may be missing from a binding.
    """

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        """Open the driver. Raises an exception with NVML's return code in ``value``."""

    def nvmlShutdown(self) -> None:  # noqa: N802
        """Let go of it."""


class Guard:
    """Calls functions of a binding by name."""

    def __init__(self, module: Binding) -> None:
        self.module = module

    def call(self, label: str, name: str, *arguments: Any) -> Any | Missing:
        """What ``module.name(*arguments)`` gives, or Missing. Raises GpuLost naming ``label``."""
        function = getattr(self.module, name, None)
        if function is None:
            return Missing(f"the NVML binding has no {name}", code=FUNCTION_NOT_FOUND)
        try:
            return function(*arguments)
        except Exception as error:  # the binding itself can break too (a symbol, a struct of another driver): only no reading
            return self._missing(label, error)

    def first(self, label: str, *spellings: tuple[Any, ...]) -> Any | Missing:
        """The first of several ``(name, *arguments)`` that this driver knows: functions are renamed between driver branches."""
        answer: Any = Missing("no call given")
        for name, *arguments in spellings:
            answer = self.call(label, name, *arguments)
            if not (isinstance(answer, Missing) and answer.code in _NEXT_SPELLING):
                return answer
        return answer

    def field(self, label: str, handle: Any, name: str, number: int, scope: int | None = None) -> Reading[int | float]:
        """One value of nvmlDeviceGetFieldValues by its NVML_FI_* name (``number`` where the binding does not know the name).

        ``scope``: which of several the field is asked of, a link for the NVLink fields.
        """
        field = getattr(self.module, name, number)
        answer = self.call(label, "nvmlDeviceGetFieldValues", handle, [field if scope is None else (field, scope)])
        if isinstance(answer, Missing):
            return answer
        value = answer[0]
        if value.nvmlReturn != 0:
            return self._coded(
                label, int(value.nvmlReturn), _FIELD_ERRORS.get(value.nvmlReturn, f"NVML return code {value.nvmlReturn}")
            )
        return _union(value)

    def constant(self, name: str, default: int) -> int:
        """An integer constant of the binding."""
        found = getattr(self.module, name, default)
        return found if isinstance(found, int) else default

    def _missing(self, label: str, error: Exception) -> Missing:
        code = getattr(error, "value", None)
        if type(error).__name__ == "NVMLLibraryMismatchError":
            code = FUNCTION_NOT_FOUND
        text = " ".join(str(error).split()) or type(error).__name__
        return self._coded(label, code if isinstance(code, int) else None, text)

    def _coded(self, label: str, code: int | None, text: str) -> Missing:
        if code in (GPU_IS_LOST, GPU_NOT_FOUND):
            raise GpuLost(label)
        return Missing(text, permission=code == NO_PERMISSION, code=code)


def _union(value: Any) -> int | float:
    """The number in a c_nvmlValue_t, chosen by its valueType (nvml.h, enum nvmlValueType_t)."""
    names = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
    number: int | float = getattr(value.value, names.get(int(value.valueType), "ullVal"))
    return number


def then(reading: Reading[T], convert: Callable[[T], U]) -> Reading[U]:
    """``convert(reading)``, or the Missing as it is; an answer of an unexpected shape is a Missing too."""
    if isinstance(reading, Missing):
        return reading
    try:
        return convert(reading)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        return Missing(f"unexpected answer {reading!r}: {error}")


def text(value: Any) -> str:
    """Text of the binding: older ones give bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
