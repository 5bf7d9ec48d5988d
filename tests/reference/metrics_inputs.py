"""Weights and pictures that the metrics were recorded with; functions of names."""

import numpy as np

from tests.reference import rule

WIDTHS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
# Where torchvision's list of layers has convolutions.
CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def vgg16(salt: str) -> dict[str, np.ndarray]:
    """State dict of VGG16's convolutions; twice the variance keeps ReLUs' scale."""
    arrays, channels = {}, 3
    widths = [width for widths in WIDTHS for width in widths]
    for number, width in zip(CONVS, widths, strict=True):
        name = f"features.{number}"
        kernel = rule.weight(f"{salt}{name}.weight", (width, channels, 3, 3))
        arrays[f"{name}.weight"] = np.float32(np.sqrt(2)) * kernel
        arrays[f"{name}.bias"] = rule.weight(f"{salt}{name}.bias", (width,))
        channels = width
    return arrays


def heads(salt: str) -> dict[str, np.ndarray]:
    """State dict of positive heads of scale 1."""
    names = {f"lin{i}.model.1.weight": widths[-1] for i, widths in enumerate(WIDTHS)}
    return {
        name: np.abs(rule.noise(salt + name, (1, width, 1, 1)))
        for name, width in names.items()
    }


def floats(salt: str) -> dict[str, np.ndarray]:
    """Two pairs f32 [-1, 1] "2 32 32 3": x near y."""
    base, change = (rule.noise(salt + name, (2, 32, 32, 3)) for name in ("y", "x"))
    return {"x": np.tanh(base + 0.5 * change), "y": np.tanh(base)}


def pixels(salt: str) -> dict[str, np.ndarray]:
    """Three pairs uint8 "3 40 33 3": blocks of colour, and those under noise."""
    coarse = rule.noise(salt + "x", (3, 8, 11, 3)).repeat(5, axis=1).repeat(3, axis=2)
    x = 128 + 50 * coarse
    strength = np.array([2, 12, 60], np.float32).reshape(3, 1, 1, 1)
    x_hat = x + strength * rule.noise(salt + "x_hat", x.shape)
    both = {"x_hat": x_hat, "x": x}
    return {name: np.clip(np.rint(v), 0, 255).astype("u1") for name, v in both.items()}
