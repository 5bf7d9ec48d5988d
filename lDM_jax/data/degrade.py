"""Degradations for super-resolution: crops, low resolution, blur, noise, JPEG.

`RandomCrop` makes the sharp image as the original's loader does, `Degrade` the low
resolution beside it. The plain kinds are PIL's resampling methods; "bicubic" is the
setting of the paper's tables. "bsr" and "bsr_light" are the degradation of BSRGAN
(arXiv:2103.14006) as the original trained with it; the light numbers are in brackets:

    halve   1 in 4, if the factor is 4: resize by 1/2 first; what follows then does 2
    in random order, shrink before fit:
    blur    twice [once]: a Gaussian kernel, isotropic or not (`random_blur_kernel`)
    shrink  3 in 4 [4 in 5] by U[1, 2 factor], else Gaussian blur and every factor-th
    fit     to the extent of the low resolution
    noise   level 2 to 25 [1 to 2] of 255: color 2 in 5, gray 2 in 5, correlated 1 in 5
    jpeg    9 in 10, quality 30 to 95 [80 to 95]
    jpeg    once more, always the last step

A resize is linear, cubic or by area, by chance. The camera's own processing, a further
step of the paper, is left out, as it was in the original. On one core at 256 px
and factor 4: "bicubic" 0.8 ms, "bsr" 13 ms, "bsr_light" 7 ms, a crop of 188 to 375 px
4 ms (`taskset -c 0 python -m benchmarks.transforms --repeats 60`).

Read `Degrade`, then `degrade_bsr`, then its steps. They work on f32 [0, 1] "H W 3".
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.data.transforms import SPATIAL_KEYS, Example, check_option

RESIZES = ("linear", "cubic", "area")
SHRINK_KERNEL_PX = 25
NARROWEST = 0.05  # px^2; an odd kernel of it leaves 99.98 % at its middle


class Bsr(NamedTuple):
    """The numbers in which the two BSR kinds differ; ranges include both ends."""

    blurs: int
    blur_scale: float  # of the widths in `random_blur_kernel`
    isotropic_px: tuple[int, ...]  # extents of the kernels
    anisotropic_px: tuple[int, ...]
    shrink_chance: float
    noise_level: tuple[int, int]
    jpeg_quality: tuple[int, int]


BSR = {
    "bsr": Bsr(
        blurs=2,
        blur_scale=1.0,
        isotropic_px=tuple(range(7, 26, 2)),
        anisotropic_px=tuple(range(7, 26, 2)),
        shrink_chance=0.75,
        noise_level=(2, 25),
        jpeg_quality=(30, 95),
    ),
    "bsr_light": Bsr(
        blurs=1,
        blur_scale=0.25,
        isotropic_px=(5, 6, 7),
        anisotropic_px=tuple(range(5, 15)),
        shrink_chance=0.8,
        noise_level=(1, 2),
        jpeg_quality=(80, 95),
    ),
}
KINDS = (*image.RESAMPLING, *BSR)


@dataclass(frozen=True)
class RandomCrop:
    """A random square of image f32 "H W 3", resized by area to "size_px size_px 3".

    Its side is int(u min(H, W)), u uniform in [min_share, max_share], its position
    uniform. Comes before what else has the image's extent: ValueError when such a key
    is there.
    """

    size_px: int
    min_share: float = 0.5
    max_share: float = 1.0

    def __post_init__(self):
        if self.size_px < 1:
            raise UserError(f"size_px is {self.size_px}; it must be at least 1")
        if not 0.0 < self.min_share <= self.max_share <= 1.0:
            raise UserError(
                f"a crop takes {self.min_share} to {self.max_share} of the side; give "
                "shares in (0, 1], the smaller one first"
            )

    def __call__(self, example: Example, rng: Generator) -> Example:
        others = {"layout", "boxes", *SPATIAL_KEYS[1:]} & example.keys()
        if others:
            raise ValueError(f"crop before there is {', '.join(sorted(others))}")
        x = example["image"]
        height, width = x.shape[:2]
        share = rng.uniform(self.min_share, self.max_share)
        side = max(1, int(min(height, width) * share))
        top = rng.integers(height - side, endpoint=True)
        left = rng.integers(width - side, endpoint=True)
        crop = x[top : top + side, left : left + side]
        return {**example, "image": resize(crop, self.size_px, self.size_px, "area")}


@dataclass(frozen=True)
class Degrade:
    """Add low_res f32 [-1, 1] "h w 3" to image f32 [-1, 1] "H W 3", h = H / factor.

    kind: "bicubic" or another of PIL's methods, "bsr" or "bsr_light". Both images go
    through uint8. UserError for an unknown kind and for an extent that the factor does
    not divide.
    """

    kind: str = "bicubic"
    factor: int = 4

    def __post_init__(self):
        check_option("degradation", self.kind, KINDS)
        if self.factor < 1:
            raise UserError(f"the factor is {self.factor}; it must be at least 1")

    def __call__(self, example: Example, rng: Generator) -> Example:
        pixels = image.to_uint8(example["image"])
        height, width = pixels.shape[:2]
        if height % self.factor or width % self.factor:
            raise UserError(
                f"an image of {height} x {width} pixels has no low resolution of "
                f"factor {self.factor}: give a multiple of {self.factor}"
            )
        if self.kind in BSR:
            low = degrade_bsr(pixels, self.factor, BSR[self.kind], rng)
        else:
            extents = height // self.factor, width // self.factor
            low = image.resample(pixels, *extents, method=self.kind)
        return {**example, "low_res": image.to_float(low)}


def degrade_bsr(
    pixels: np.ndarray, factor: int, numbers: Bsr, rng: Generator
) -> np.ndarray:
    """uint8 "H W 3" -> uint8 "H/factor W/factor 3", by the steps of the module."""
    x = pixels.astype(np.float32) / 255.0
    target = x.shape[0] // factor, x.shape[1] // factor
    if factor == 4 and rng.random() < 0.25:
        x, factor = halve(x, rng), 2
    steps = [*["blur"] * numbers.blurs, "shrink", "fit", "noise", "jpeg"]
    steps = [steps[i] for i in rng.permutation(len(steps))]
    first, second = sorted((steps.index("shrink"), steps.index("fit")))
    steps[first], steps[second] = "shrink", "fit"
    for step in steps:
        if step == "blur":
            x = convolve(x, random_blur_kernel(factor, numbers, rng))
        elif step == "shrink":
            x = shrink(x, factor, numbers.shrink_chance, rng)
        elif step == "fit":
            x = _random_resize(x, *target, rng)
        elif step == "noise":
            x = add_noise(x, numbers.noise_level, rng)
        elif rng.random() < 0.9:
            x = _random_jpeg(x, numbers.jpeg_quality, rng) / np.float32(255.0)
    return _random_jpeg(x, numbers.jpeg_quality, rng)


def halve(x: np.ndarray, rng: Generator) -> np.ndarray:
    """Half the extent: one of RESIZES or, in every second call, antialiased cubic."""
    height, width = x.shape[0] // 2, x.shape[1] // 2
    if rng.random() < 0.5:
        return _random_resize(x, height, width, rng)
    return np.clip(resize(x, height, width, "antialiased"), 0.0, 1.0)


def shrink(x: np.ndarray, factor: int, chance: float, rng: Generator) -> np.ndarray:
    """Shrink by U[1, 2 factor] with that chance, else by the factor after a blur.

    The blur's center lies (factor - 1) / 2 up and left of the kernel's, so that every
    factor-th pixel shows the middle of its block.
    """
    height, width = x.shape[:2]
    if rng.random() < chance:
        by = rng.uniform(1, 2 * factor)
        extents = max(1, int(height / by)), max(1, int(width / by))
        return _random_resize(x, *extents, rng)
    kernel = shifted_gaussian(rng.uniform(0.1, 0.6 * factor), (factor - 1) / 2)
    return np.clip(convolve(x, kernel)[::factor, ::factor], 0.0, 1.0)


def _random_resize(
    x: np.ndarray, height: int, width: int, rng: Generator
) -> np.ndarray:
    method = RESIZES[rng.integers(len(RESIZES))]
    return np.clip(resize(x, height, width, method), 0.0, 1.0)


def _random_jpeg(x: np.ndarray, quality: tuple[int, int], rng: Generator) -> np.ndarray:
    pixels = np.clip(np.rint(x * 255.0), 0, 255).astype(np.uint8)
    return image.jpeg(pixels, quality=int(rng.integers(*quality, endpoint=True)))


def random_blur_kernel(factor: int, numbers: Bsr, rng: Generator) -> np.ndarray:
    """A Gaussian kernel "k k" of sum 1: anisotropic in every second call.

    Variances U[0, s (4 + factor)] along two axes at a random angle, or one standard
    deviation U[0, s (2 + 0.2 factor)], where s is numbers.blur_scale.
    """
    if rng.random() < 0.5:
        size = rng.choice(numbers.anisotropic_px)
        variances = rng.uniform(0, numbers.blur_scale * (4 + factor), 2)
        return gaussian_kernel(size, variances, angle=rng.uniform(0, np.pi))
    size = rng.choice(numbers.isotropic_px)
    deviation = rng.uniform(0, numbers.blur_scale * (2 + 0.2 * factor))
    return gaussian_kernel(size, (deviation**2, deviation**2), angle=0.0)


def gaussian_kernel(
    size: int, variances: tuple[float, float], *, angle: float
) -> np.ndarray:
    """exp(-(u^2 / variances[0] + w^2 / variances[1]) / 2) on "size size", of sum 1.

    u is the distance from the middle along the angle (from the x axis, towards larger
    y), w the one across. Variances below NARROWEST are raised to it: an even kernel
    has no pixel at 0, and a narrower ridge may pass between all but far ones.
    """
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    u, w = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    first, second = np.maximum(variances, NARROWEST)
    kernel = np.exp(-(u**2 / first + w**2 / second) / 2)
    return kernel / kernel.sum()


def shifted_gaussian(deviation: float, shift: float) -> np.ndarray:
    """A Gaussian kernel of SHRINK_KERNEL_PX, moved up and left by `shift` pixels.

    QUIRK(interpolated_shift): as in the original the sampled kernel is interpolated
    linearly, which widens it a little: by a variance of 1/4 at half a pixel.
    """
    offsets = np.arange(SHRINK_KERNEL_PX) - (SHRINK_KERNEL_PX - 1) / 2
    row = np.exp(-(offsets**2) / (2 * deviation**2))
    row = np.interp(offsets + shift, offsets, row)
    kernel = np.outer(row, row)
    return kernel / kernel.sum()


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """x * kernel for every channel of "H W c"; beyond the border x is mirrored.

    The mirror lies on the border pixels, which are not repeated. QUIRK(even_kernels):
    the middle of an even kernel is the pixel after its center, as in the original, and
    the image moves up and left by half a pixel.
    """
    (height, width), size = x.shape[:2], kernel.shape[0]
    before, after = size - 1 - size // 2, size // 2
    padded = np.pad(x, ((before, after), (before, after), (0, 0)), mode="reflect")
    extents = padded.shape[:2]
    spectrum = np.fft.rfft2(kernel.astype(x.dtype), extents)[:, :, None]
    spectrum = spectrum * np.fft.rfft2(padded, axes=(0, 1))
    full = np.fft.irfft2(spectrum, extents, axes=(0, 1))
    # Only the last positions, where the kernel lies inside, are free of wrapping.
    return full[size - 1 :, size - 1 :].astype(x.dtype)[:height, :width]


def add_noise(x: np.ndarray, level: tuple[int, int], rng: Generator) -> np.ndarray:
    """x + Gaussian noise, clipped to [0, 1]: color, gray or correlated.

    Color (2 in 5) and gray (2 in 5) noise has a standard deviation of a whole number
    of the range `level`, over 255. The covariance of correlated noise between the
    channels is |L^2 U^T D U|, where L is the largest level over 255, D a diagonal of
    U[0, 1] and U orthogonal.
    """
    deviation = int(rng.integers(*level, endpoint=True)) / 255.0
    kind, shape = rng.random(), x.shape[:2]
    if kind < 0.4:
        noise = deviation * rng.standard_normal((*shape, 1), np.float32)
    elif kind > 0.6:
        noise = deviation * rng.standard_normal((*shape, 3), np.float32)
    else:
        turn = np.linalg.svd(rng.random((3, 3)))[0]
        covariance = turn.T @ np.diag(rng.random(3)) @ turn
        # The absolute values of a positive 3 x 3 matrix are a positive matrix.
        values, axes = np.linalg.eigh(np.abs((level[1] / 255.0) ** 2 * covariance))
        root = axes * np.sqrt(np.maximum(values, 0.0))
        noise = rng.standard_normal((*shape, 3), np.float32) @ root.T.astype(np.float32)
    return np.clip(x + noise, 0.0, 1.0, dtype=np.float32)


def resize(x: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """f32 "H W c" -> f32 "height width c"; methods: see `resize_matrix`."""
    columns = resize_matrix(x.shape[1], width, method)
    x = np.tensordot(resize_matrix(x.shape[0], height, method), x, (1, 0))
    return np.ascontiguousarray(np.tensordot(x, columns, (1, 1)).swapaxes(1, 2))


def resize_matrix(size: int, target: int, method: str) -> np.ndarray:
    """f32 "target size", rows of sum 1: resizing one axis is a product with it.

    Output pixel i covers [i r, (i + 1) r) of the input, r = size / target; its middle
    is (i + 1/2) r - 1/2. "area" is the mean over what it covers; "linear" and "cubic"
    (a = -0.75) interpolate at the middle, without antialiasing; "antialiased" is cubic
    (a = -0.5), its kernel stretched by r. The border is repeated.
    """
    ratio = size / target
    if method == "area":
        edges = np.arange(target + 1)[:, None] * ratio
        pixel = np.arange(size)[None, :]
        covered = np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)
        return (np.maximum(covered, 0.0) / ratio).astype(np.float32)
    stretch = max(1.0, ratio) if method == "antialiased" else 1.0
    reach = stretch * (1 if method == "linear" else 2)
    middle = (np.arange(target)[:, None] + 0.5) * ratio - 0.5
    taps = np.floor(middle - reach) + 1 + np.arange(int(np.ceil(2 * reach)))
    distance = np.abs(taps - middle) / stretch
    if method == "linear":
        weights = np.maximum(0.0, 1.0 - distance)
    else:
        weights = cubic(distance, a=-0.75 if method == "cubic" else -0.5)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((target, size))
    columns = np.clip(taps, 0, size - 1).astype(int)
    np.add.at(matrix, (np.arange(target)[:, None], columns), weights)
    return matrix.astype(np.float32)


def cubic(distance: np.ndarray, *, a: float) -> np.ndarray:
    """Keys' kernel of slope a at distance 1; zero from distance 2."""
    d = np.minimum(distance, 2.0)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, far)
