"""Latency without the hardware: milliseconds in terms of one network whose time on it is published."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LatencyModel:
    """A published time, and what the network of that time does.

    milliseconds: of the known network. moved: bytes it moves, as `objectives.modelled` counts them; multiplications: of its
    layers. Both for uint8. slow: how much slower a byte moves through an operation that the hardware does not have.
    """

    milliseconds: float
    moved: float
    multiplications: float
    slow: float


SYNAPTICS = LatencyModel(
    milliseconds=44.85,
    moved=198_374_400,
    multiplications=4_980_326_400,
    slow=1130 / 44.85,
)
"""Of XLSR x3 from 640x360 to 1920x1080, on the Synaptics VS680's NPU: Ayazoglu 2021 (XLSR), table 3, and Ignatov et al. 2021
(Real-Time Quantized Image Super-Resolution on Mobile NPUs), which says the board and that outputs are Full HD. slow: the
same network took 1130 ms on a phone's processor (section 4.2), which is where an operation runs that an NPU lacks.
"""
