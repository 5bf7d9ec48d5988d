"""PSNR and SSIM against scikit-image and closed forms; summaries over batches."""

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation.metrics import reconstruction
from tests.reference import metrics_inputs, rule

TOLERANCE = 1e-6  # f64 against f64, another order of sums


def assert_close(inputs: dict, theirs: dict):
    ours = reconstruction.reconstruction_metrics(inputs["x_hat"], inputs["x"])
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert ours[name].dtype == np.float64
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=TOLERANCE)


def test_recorded():
    """Three strengths of noise, sides that differ."""
    theirs = rule.read_arrays(rule.FOLDER / "similarity.npz")
    assert_close(metrics_inputs.pixels("similarity/"), theirs)


@pytest.mark.live
def test_live():
    for package in ("torch", "skimage"):
        pytest.importorskip(package, reason="needs requirements-dev.txt")
    from tests.reference import record_metrics

    inputs = metrics_inputs.pixels("live/similarity/")
    assert_close(inputs, record_metrics.similarity(inputs))


def constant(value: int, size_px: int = 12) -> np.ndarray:
    return np.full((1, size_px, size_px, 3), value, np.uint8)


def test_equal_pictures():
    x = metrics_inputs.pixels("similarity/")["x"]
    assert np.isposinf(reconstruction.psnr(x, x)).all()
    np.testing.assert_allclose(reconstruction.ssim(x, x), 1.0, atol=1e-12)


def test_constant_pictures():
    """Without structure SSIM is its luminance term, and uint8 does not wrap round."""
    x_hat, x = constant(51), constant(204)
    c1 = 2.55**2
    expected = (2 * 51 * 204 + c1) / (51**2 + 204**2 + c1)
    for pair in ((x_hat, x), (x, x_hat)):
        # MSE 0.36 of the peak's square
        assert reconstruction.psnr(*pair)[0] == pytest.approx(-20 * np.log10(0.6))
        assert reconstruction.ssim(*pair)[0] == pytest.approx(expected, abs=1e-9)


def test_one_channel_counts_a_third():
    x = metrics_inputs.pixels("similarity/")["x"][:1]
    x_hat = metrics_inputs.pixels("similarity/")["x_hat"][:1]
    parts = []
    for channel in range(3):
        mixed = x.copy()
        mixed[..., channel] = x_hat[..., channel]
        parts.append(1 - reconstruction.ssim(mixed, x)[0])
    assert sum(parts) == pytest.approx(1 - reconstruction.ssim(x_hat, x)[0])


def test_lpips_sees_floats_and_stands_beside():
    def distance(x_hat, x):
        assert x.dtype == np.float32
        return x_hat.max(axis=(1, 2, 3)) - x.min(axis=(1, 2, 3))

    rows = reconstruction.reconstruction_metrics(
        constant(255), constant(0), lpips=distance
    )
    assert rows["lpips"].tolist() == [2.0] and rows["lpips"].dtype == np.float64


def test_a_summary_is_over_pictures_not_batches():
    batches = [{"psnr": np.array([1.0, 2.0, 3.0])}, {"psnr": np.array([6.0])}]
    summary = reconstruction.summarize(iter(batches))["psnr"]
    assert summary == (3.0, pytest.approx(np.sqrt(3.5)), 4)
    assert str(summary) == "3 ± 1.9"
    assert reconstruction.summarize([]) == {}
    assert np.isposinf(
        reconstruction.summarize([{"psnr": np.array([np.inf, 1])}])["psnr"].mean
    )


def test_small_pictures_are_refused_in_words():
    assert reconstruction.ssim(constant(1, 11), constant(1, 11)).shape == (1,)
    with pytest.raises(UserError, match="at least 11 px a side, not 10 x 10"):
        reconstruction.ssim(constant(1, 10), constant(1, 10))
