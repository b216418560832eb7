"""How each network is trained from scratch in float: facts for `autoq pretrain`, from the networks' papers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """loss: of the pixels. rates: (first, highest, last) learning rate; rise: the share of steps until the highest.

    After it the rate falls as `fall` says. he_start: convolutions begin with He-normal weights of 0.1 of the usual
    variance. intensity: images are darkened to 0.7 or 0.5, each a third of the time. batch: patches a step;
    patch: low-resolution side. steps: of pixel training; adversarial: the loss of the second stage, and its steps.
    """

    loss: Literal["l1", "mse", "charbonnier"] = "l1"
    rates: tuple[float, float, float] = (2e-5, 5e-4, 1e-6)
    rise: float = 0.01
    fall: Literal["linear", "cosine"] = "cosine"
    he_start: bool = False
    intensity: bool = False
    batch: int = 16
    patch: int = 24
    steps: int = 20_000
    adversarial: Literal["hinge", "relativistic"] | None = None
    adversarial_steps: int = 0


PIXELS = Recipe()
"""L1 and Adam, as EDSR (Lim et al. 2017) and all after it, at a rate for short training."""

SMALL = Recipe(loss="mse", rates=(1e-4, 2e-3, 1e-5), steps=50_000, patch=32)
"""Networks of some ten thousand parameters learn faster and longer, on the squared error of their papers."""

XLSR = Recipe(loss="charbonnier", rates=(5e-5, 25e-4, 1e-4), fall="linear", he_start=True, intensity=True, patch=32, steps=90_000)
"""Ayazoglu 2021, section 4.2: Charbonnier loss, one triangle of the learning rate, small He-normal start, intensities."""

SRGAN = Recipe(adversarial="hinge", adversarial_steps=4_000)
"""Ledig et al. 2017: pixels first, then against a discriminator; with a hinge loss, which trains in fewer steps."""

SHALLOW_ESRGAN = Recipe(adversarial="relativistic", adversarial_steps=4_000)
"""Fewer blocks bear a higher rate."""

ESRGAN = Recipe(rates=(2e-5, 2e-4, 1e-6), adversarial="relativistic", adversarial_steps=4_000)
"""Wang et al. 2018, section 3.2: the discriminator judges which of two images is relatively more real."""
