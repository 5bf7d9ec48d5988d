"""Resizing and blur of `data.degrade`: torch, PIL, SciPy beside ours, and moments."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from lDM_jax.data import degrade
from lDM_jax.data.degrade import BSR


def rng(seed=0):
    return np.random.default_rng(seed)


# Resizing by matrices


@pytest.mark.live
@pytest.mark.parametrize("extents", [(8, 12), (31, 17), (7, 90), (64, 48)])
@pytest.mark.parametrize("method, name", [("linear", "bilinear"), ("cubic", "bicubic")])
def test_resize_interpolates_as_torch_does(method, name, extents):
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    x = rng().random((32, 48, 3), np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(2, 0, 1)[None], extents, mode=name
    )
    # f32 sums of 16 products of numbers up to 1 and positions up to 90.
    np.testing.assert_allclose(
        degrade.resize(x, *extents, method),
        expected[0].permute(1, 2, 0).numpy(),
        atol=2e-5,
    )


@pytest.mark.parametrize("target", [3, 8, 12, 17, 24, 60])
def test_area_is_the_integral_over_each_pixel(target):
    """By differences of the cumulative sum, which is linear within a pixel."""
    x = rng().random(24)
    cumulative = np.concatenate([[0], np.cumsum(x)])
    edges = np.interp(np.arange(target + 1) * 24 / target, np.arange(25), cumulative)
    expected = np.diff(edges) * target / 24
    got = degrade.resize_matrix(24, target, "area") @ x
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("target", [16, 20, 11, 50])
def test_antialiased_is_pil_s_bicubic_inside(target):
    """PIL cuts the kernel off at the border, where we repeat the border's pixel."""
    x = rng().random((1, 40)).astype(np.float32)
    expected = Image.fromarray(x).resize((target, 1), Image.Resampling.BICUBIC)
    got = degrade.resize_matrix(40, target, "antialiased") @ x[0]
    # Twice the ratio reaches over the border: two output pixels, three when rounded.
    np.testing.assert_allclose(got[3:-3], np.asarray(expected)[0, 3:-3], atol=1e-6)


@pytest.mark.parametrize("target", [1, 5, 16, 40])
@pytest.mark.parametrize("method", ["linear", "cubic", "area", "antialiased"])
def test_rows_of_a_resize_sum_to_one(method, target):
    matrix = degrade.resize_matrix(16, target, method)
    assert matrix.shape == (target, 16) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    if target == 16:
        np.testing.assert_allclose(matrix, np.eye(16), atol=1e-6)


# Blur


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.5])
def test_kernel_is_scipy_s_normal_density(angle):
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-np.sin(angle), np.cos(angle)])
    covariance = 5 * np.outer(along, along) + 1.5 * np.outer(across, across)
    for size in (9, 12):
        kernel = degrade.gaussian_kernel(size, (5.0, 1.5), angle=angle)
        y, x = np.mgrid[:size, :size] - (size - 1) / 2
        density = stats.multivariate_normal([0, 0], covariance).pdf(np.dstack([x, y]))
        np.testing.assert_allclose(kernel, density / density.sum(), atol=1e-12)


def moments(kernel):
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]]
    mean = np.array([(kernel * x).sum(), (kernel * y).sum()])
    x, y = x - mean[0], y - mean[1]
    second = [[(kernel * a * b).sum() for a in (x, y)] for b in (x, y)]
    return mean, np.array(second)


def test_kernel_has_its_variances_along_its_angle():
    """41 px are 8 deviations: nothing is cut off, and sampling adds nothing."""
    kernel = degrade.gaussian_kernel(41, (6.0, 2.0), angle=np.pi / 6)
    mean, second = moments(kernel)
    np.testing.assert_allclose(kernel.sum(), 1)
    np.testing.assert_allclose(mean, 20, atol=1e-9)
    # cos^2 = 3/4: 6 * 3/4 + 2 * 1/4 along x; (6 - 2) * sin cos off the diagonal.
    expected = [[5.0, np.sqrt(3)], [np.sqrt(3), 3.0]]
    np.testing.assert_allclose(second, expected, atol=1e-6)


@pytest.mark.parametrize("size", [5, 6])
def test_kernels_of_no_width_are_a_pixel_or_four(size):
    kernel = degrade.gaussian_kernel(size, (0.0, 0.0), angle=1.0)
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(kernel.sum(), 1)
    if size == 5:
        np.testing.assert_allclose(kernel[2, 2], 1, atol=2e-4)
    else:
        np.testing.assert_allclose(kernel[2:4, 2:4], 1 / 4, atol=1e-3)


@pytest.mark.parametrize("kind, scale", [("bsr", 1), ("bsr_light", 0.25)])
def test_random_kernels_keep_to_the_published_widths(kind, scale):
    """Factor 4: variances to 8, deviations to 2.8, a quarter of both when light."""
    generator = rng()
    kernels = [degrade.random_blur_kernel(4, BSR[kind], generator) for _ in range(600)]
    sizes = {kernel.shape[0] for kernel in kernels}
    if kind == "bsr":
        assert sizes == set(range(7, 26, 2))
    else:
        assert sizes == set(range(5, 15))
    values = np.array([np.linalg.eigvalsh(moments(k)[1]) for k in kernels])
    # Cut off or sampled far apart, a kernel's variance differs from its density's;
    # four pixels around the middle have 1/4.
    assert values.max() <= max(8 * scale, (2.8 * scale) ** 2) + 0.25
    assert values.max() > 0.8 * 8 * scale
    isotropic = np.isclose(values[:, 0], values[:, 1], rtol=1e-6, atol=1e-9)
    assert 0.5 - 5 * np.sqrt(0.25 / 600) < isotropic.mean()
    assert isotropic.mean() < 0.7  # narrow kernels have one pixel and no direction


@pytest.mark.parametrize("extent", [(30, 41), (5, 7)])
@pytest.mark.parametrize("size", [1, 5, 6, 25])
def test_convolve_is_scipy_s_with_mirrored_borders(size, extent):
    x = rng().random((*extent, 3), np.float32)
    kernel = rng(1).random((size, size))
    kernel /= kernel.sum()
    expected = ndimage.convolve(x.astype(float), kernel[:, :, None], mode="mirror")
    got = degrade.convolve(x, kernel)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)  # f32 transforms


def test_even_kernels_move_the_picture_by_half_a_pixel():
    """QUIRK(even_kernels): what was at i + 1/2 is shown at i."""
    ramp = np.tile(np.arange(40, dtype=np.float32)[None, :, None] / 40, (40, 1, 3))
    for size, shift in ((7, 0.0), (8, 0.5)):
        kernel = degrade.gaussian_kernel(size, (1.0, 2.0), angle=0.3)
        moved = degrade.convolve(ramp, kernel)[20, 10:30, 0] * 40
        np.testing.assert_allclose(moved - np.arange(10, 30), shift, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shifted_kernel_shows_the_middle_of_each_block(factor):
    """QUIRK(interpolated_shift): half a pixel of shift adds a variance of 1/4."""
    kernel = degrade.shifted_gaussian(2.0, (factor - 1) / 2)
    mean, second = moments(kernel)
    widened = 4.0 + (0.25 if factor != 3 else 0.0)
    # The kernel ends 6 deviations from its middle: less than 1e-6 is cut off.
    np.testing.assert_allclose(mean, 12 - (factor - 1) / 2, atol=1e-5)
    np.testing.assert_allclose(second, widened * np.eye(2), atol=1e-4)
    ramp = np.tile(np.arange(60, dtype=np.float32)[:, None, None] / 60, (1, 60, 3))
    low = degrade.shrink(ramp, factor, 0.0, rng())
    assert low.shape[:2] == (60 // factor, 60 // factor)
    rows = np.arange(60 // factor)
    inside = slice(16 // factor, -16 // factor)
    middle = (rows * factor + (factor - 1) / 2) / 60
    np.testing.assert_allclose(low[inside, 5, 0], middle[inside], atol=1e-5)
