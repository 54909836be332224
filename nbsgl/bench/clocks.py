"""Clock, power, temperature and memory of a card while something runs, read from its driver (NVML) by a thread."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
PERIOD_S = 0.1
SM_CLOCK, GPU_TEMPERATURE = 1, 0  # nvmlClockType_t, nvmlTemperatureSensors_t


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading."""

    sm_mhz: int
    watts: float
    celsius: int
    used_bytes: int


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Nvml:
    """The few calls of the driver's library, for one card.  A card that is lost reads as what was last seen."""

    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle
        self._last: dict[str, int] = {}

    @classmethod
    def open(cls, index: str, library: Any = None) -> Nvml | None:
        """The card of that number or UUID; None without a driver or such a card."""
        try:
            library = library or ctypes.CDLL(LIBRARY)
        except OSError:
            return None
        handle = ctypes.c_void_p()
        if library.nvmlInit_v2() != 0:
            return None
        if index.isdigit():
            status = library.nvmlDeviceGetHandleByIndex_v2(int(index), ctypes.byref(handle))
        else:
            status = library.nvmlDeviceGetHandleByUUID(index.encode(), ctypes.byref(handle))
        return cls(library, handle) if status == 0 else None

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(96)
        self._library.nvmlDeviceGetName(self._handle, text, len(text))
        return text.value.decode(errors="replace")

    @property
    def total_bytes(self) -> int:
        return int(self._memory().total)

    def sample(self) -> Sample:
        return Sample(
            sm_mhz=self._number("nvmlDeviceGetClockInfo", SM_CLOCK),
            watts=self._number("nvmlDeviceGetPowerUsage") / 1e3,
            celsius=self._number("nvmlDeviceGetTemperature", GPU_TEMPERATURE),
            used_bytes=int(self._memory().used),
        )

    def _number(self, call: str, *args: int) -> int:
        value = ctypes.c_uint()
        if getattr(self._library, call)(self._handle, *args, ctypes.byref(value)) == 0:
            self._last[call] = value.value
        return self._last.get(call, 0)

    def _memory(self) -> _Memory:
        memory = _Memory()
        self._library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory))
        return memory


class Clocks:
    """`with Clocks(card) as clocks:` reads every PERIOD_S; `clocks.summary()` afterwards.  Without a card: {}."""

    def __init__(self, nvml: Nvml | None) -> None:
        self._nvml = nvml
        self._samples: list[Sample] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nbsgl-clocks", daemon=True)

    def _watch(self) -> None:
        assert self._nvml is not None
        while not self._is_over.is_set():
            self._samples.append(self._nvml.sample())
            self._is_over.wait(PERIOD_S)

    def __enter__(self) -> Clocks:
        if self._nvml is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._nvml is not None:
            self._thread.join()

    def summary(self) -> dict[str, Any]:
        """Means of clock and power, maxima of temperature and of the card's memory in use (all processes)."""
        if not self._samples:
            return {}
        count = len(self._samples)
        return {
            "sm_mhz": round(sum(one.sm_mhz for one in self._samples) / count),
            "watts": round(sum(one.watts for one in self._samples) / count),
            "celsius_max": max(one.celsius for one in self._samples),
            "memory_peak_bytes": max(one.used_bytes for one in self._samples),
        }
