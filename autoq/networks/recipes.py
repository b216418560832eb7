"""Recipes of float training from scratch (`autoq pretrain`), from the networks' papers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Settings of a float training.

    Attributes:
        loss: Pixel loss.
        rates: (first, highest, last) learning rate.
        rise: Share of the steps until the highest learning rate.
        fall: Decay of the learning rate after that.
        he_start: Initialize convolutions with He-normal weights of 0.1 times the usual variance.
        intensity: Scale the intensity of images by 1, 0.7 or 0.5 at random.
        batch: Patches per step.
        patch: Low-resolution side of a patch in pixels.
        steps: Steps with the pixel loss.
        adversarial: Loss of the adversarial stage; None without such a stage.
        adversarial_steps: Steps of the adversarial stage.
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
"""L1 and Adam, as in EDSR (Lim et al. 2017) and later networks, with a learning rate for short training."""

EDSR = Recipe(patch=48)
"""Lim et al. 2017, section 4.1: larger patches."""

SMALL = Recipe(loss="mse", rates=(1e-4, 2e-3, 1e-5), steps=50_000, patch=32)
"""Networks with about 10 000 parameters: a higher learning rate, more steps, and the squared error of their papers."""

XLSR = Recipe(loss="charbonnier", rates=(5e-5, 25e-4, 1e-4), fall="linear", he_start=True, intensity=True, patch=32, steps=90_000)
"""Ayazoglu 2021, section 4.2: Charbonnier loss, triangular learning rate, small He-normal initialization, random intensity."""

SRGAN = Recipe(adversarial="hinge", adversarial_steps=4_000)
"""Ledig et al. 2017: pixel loss, then adversarial training; with a hinge loss, which needs fewer steps."""

SHALLOW_ESRGAN = Recipe(adversarial="relativistic", adversarial_steps=4_000)
"""As ESRGAN, with a higher learning rate, as the network has fewer blocks."""

ESRGAN = Recipe(rates=(2e-5, 2e-4, 1e-6), adversarial="relativistic", adversarial_steps=4_000)
"""Wang et al. 2018, section 3.2: relativistic average discriminator."""
