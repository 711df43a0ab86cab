"""What a device can do at best: the figures of its maker, or for ``cpu`` what this machine measures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from plait.errors import OptionError, nearest


@dataclass(frozen=True)
class Device:
    """Ceilings of one device.

    Args:
        name: for people.
        peak: matrix products in bf16, FLOP/s, without sparsity.
        bandwidth: of its memory, bytes/s.
        memory: bytes.
        source: where the figures are from.
    """

    name: str
    peak: float
    bandwidth: float
    memory: int
    source: str

    def with_figures(
        self, peak: float | None = None, bandwidth: float | None = None, memory: int | None = None
    ) -> Device:
        """The same device with figures of the user's own.

        Raises:
            OptionError: one that is not above 0.
        """
        own = {"peak": peak, "bandwidth": bandwidth, "memory": memory}
        given = {name: value for name, value in own.items() if value is not None}
        for name, value in given.items():
            if not value > 0:
                raise OptionError(f"{name} = {value:g}: give a number above 0.")
        source = f"{self.source}; {', '.join(given)} as given" if given else self.source
        return replace(self, **given, source=source)  # type: ignore[arg-type]


#: Dense bf16 peak, bandwidth and memory from NVIDIA's data sheets of the SXM modules.
DEVICES: dict[str, Device] = {
    "a100": Device("A100", 312e12, 2.039e12, 80 * 10**9, "NVIDIA's data sheet, A100 80GB SXM"),
    "h100": Device("H100", 989e12, 3.35e12, 80 * 10**9, "NVIDIA's data sheet, H100 SXM"),
    "h200": Device("H200", 989e12, 4.8e12, 141 * 10**9, "NVIDIA's data sheet, H200 SXM"),
}
NAMES = (*DEVICES, "cpu")


def device(name: str) -> Device:
    """The device of this name; ``cpu`` is timed, which takes a second or two.

    Raises:
        OptionError: there is no such name.
    """
    if name == "cpu":
        return _this_cpu()
    if name not in DEVICES:
        raise OptionError(f"There is no device {name!r}.{nearest(name, NAMES)}")
    return DEVICES[name]


def parse_bytes(text: str) -> int:
    """Bytes of ``24GiB``, ``80GB``, ``512MiB`` or a plain number.

    Raises:
        OptionError: it is not a size.
    """
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
    unit = next((unit for unit in units if text.strip().endswith(unit)), "")
    return round(_positive(text, text.strip().removesuffix(unit)) * units.get(unit, 1))


def parse_count(text: str) -> int:
    """A number of ``1.3B``, ``340M`` or ``5e8``.

    Raises:
        OptionError: it is not a number.
    """
    units = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    unit = next((unit for unit in units if text.strip().endswith(unit)), "")
    return round(_positive(text, text.strip().removesuffix(unit)) * units.get(unit, 1))


def _positive(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise OptionError(f"{text!r} is not a size: write a number above 0 with a unit, such as 24GiB or 1.3B.")
    return value


def _this_cpu() -> Device:
    import os

    import torch

    from plait.timing.machine import ceilings

    rates = ceilings("cpu", torch.float32)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    peak, bandwidth = rates["matmul GFLOP/s"] * 1e9, rates["copy GB/s"] * 1e9
    return Device("this CPU", peak, bandwidth, memory, "measured now: products and copies of fp32 matrices")
