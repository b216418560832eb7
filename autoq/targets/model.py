"""Latency model for hardware that is not available, calibrated with the published time of one network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LatencyModel:
    """The published time of a reference network and its work, for uint8.

    Attributes:
        milliseconds: Time of the reference network.
        moved: Bytes that it moves, as counted by `costs.latency.analytic`.
        multiplications: Multiplications of its layers.
        slow: Slowdown per byte of an operation that the hardware does not support.
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
"""XLSR x3 from 640x360 to 1920x1080 on the NPU of the Synaptics VS680. The time is from Ayazoglu 2021 (XLSR), table 3; board and
resolution are from Ignatov et al. 2021 (Real-Time Quantized Image Super-Resolution on Mobile NPUs). `slow`: the same network
took 1130 ms on a phone's CPU (section 4.2), where operations run that an NPU does not support.
"""
