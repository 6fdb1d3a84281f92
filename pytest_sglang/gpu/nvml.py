"""NVML opened: the driver, its cards. The one door to the hardware; everything behind it is a Reading."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.guard import Binding, Guard, text, then
from pytest_sglang.gpu.readings import (
    Clocks,
    GpuLost,
    GpuProcess,
    Missing,
    NoDriver,
    Pcie,
    PowerError,
    PowerLimits,
    Reading,
)

__all__ = [
    "Card",
    "Clocks",
    "GpuLost",
    "GpuProcess",
    "Missing",
    "NoDriver",
    "Nvml",
    "Pcie",
    "PowerError",
    "PowerLimits",
    "Reading",
]

_WHY_NOT = {
    9: "the library is there, but the kernel driver is not loaded (modprobe nvidia, or reboot after a kernel update)",
    12: "the library is not installed (install the NVIDIA driver; a container needs --gpus all)",
    18: "library and kernel module have different versions (after a driver update reboot, or reload the module: "
    "sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia)",
    4: "this user may not talk to the driver (check the rights of /dev/nvidia*)",
}
"""Return codes of nvmlInit (nvml.h) as a person can act on them."""


class Nvml:
    """The driver, opened. A context manager; ``close()`` may be called twice."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._open = True
        self.unopened: dict[int, Missing] = {}
        """Cards that the driver counts but does not hand out, by index: a card that fell off the bus is among them."""

    @classmethod
    def open(cls, module: Binding | None = None) -> Nvml:
        """Open NVML through ``module`` (None: pynvml). Raises NoDriver with one clear sentence."""
        binding = _pynvml() if module is None else module
        try:
            binding.nvmlInit()
        except Exception as error:  # a broken library raises OSError, AttributeError and whatever the binding makes of it
            found = _WHY_NOT.get(getattr(error, "value", -1), str(error))
            raise NoDriver("the NVIDIA driver (libnvidia-ml.so.1)", found) from None
        return cls(Guard(binding))

    def close(self) -> None:
        """Let go of the driver."""
        if self._open:
            self._open = False
            self._guard.call("NVML", "nvmlShutdown")

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def guard(self) -> Guard:
        """The guard around every call, for modules that read pairs of cards."""
        return self._guard

    def driver(self) -> str:
        """Version of the driver: ``580.159.04``; where it cannot be read, the reason."""
        return str(then(self._guard.call("NVML", "nvmlSystemGetDriverVersion"), text))

    def cuda(self) -> Reading[str]:
        """Highest CUDA version of the driver: ``13.0``."""
        answer = self._guard.first("NVML", ("nvmlSystemGetCudaDriverVersion_v2",), ("nvmlSystemGetCudaDriverVersion",))
        return then(answer, lambda number: f"{number // 1000}.{number % 1000 // 10}")

    def count(self) -> int:
        """Number of GPUs that the driver counts. Raises NoDriver where it cannot count them."""
        answer = self._guard.call("NVML", "nvmlDeviceGetCount")
        if isinstance(answer, Missing):
            raise NoDriver("the driver's number of GPUs (nvmlDeviceGetCount)", answer.reason)
        return int(answer)

    def cards(self) -> list[Card]:
        """Every card that answers, in NVML's order; the others are in ``unopened`` with their reasons."""
        cards: list[Card] = []
        self.unopened = {}
        for index in range(self.count()):
            try:
                handle = self._guard.call(f"GPU {index}", "nvmlDeviceGetHandleByIndex", index)
                if isinstance(handle, Missing):
                    self.unopened[index] = handle
                else:
                    cards.append(Card(self._guard, handle, index))
            except GpuLost as lost:
                self.unopened[index] = Missing(str(lost), code=15)
        return cards


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise NoDriver("the NVML binding pynvml", f"not importable: {error} (pip install nvidia-ml-py)") from None
    return pynvml
