"""The same features through our figures and through the field's programs.

1e-3 relative is what the field calls agreement; what is the same formula in f64 on both
sides agrees to 1e-6 or better, and is held to that. Features are f32 with the scale and
correlation of real ones, so that sqrtm has something to do.
"""

import numpy as np
import pytest
from scipy import linalg

from lDM_jax.evaluation.metrics import inception_score, kernel_distances, manifolds
from lDM_jax.evaluation.metrics.frechet import FrechetDistance
from lDM_jax.evaluation.metrics.resize import MODES, resize
from lDM_jax.evaluation.metrics.statistics import Moments
from tests.peers import peer, quietly, sqrtm_as_before

pytestmark = pytest.mark.live


def blocks_of(features: np.ndarray):
    """What makes the features anew, in three blocks."""
    return lambda: iter(np.array_split(features, 3))


def features(seed: int, count: int = 300, width: int = 64) -> np.ndarray:
    """Correlated, non-negative, with a falling spectrum, as pooled activations."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    mix = shared.normal(size=(width, width)) * np.geomspace(1, 0.01, width)[:, None]
    made = own.normal(size=(count, width)) @ mix + 0.1 * seed
    return np.log1p(np.exp(made)).astype(np.float32)


def gaussian(x: np.ndarray):
    moments = Moments.zeros(x.shape[1])
    moments.add(x)
    return moments.gaussian()


A, B = features(1), features(2)


def test_sqrtm_as_before_is_what_these_programs_were_written_for():
    """The root and its relative error, of a matrix whose root is known."""
    matrix = np.diag([4.0, 9.0])
    root, error = sqrtm_as_before(linalg.sqrtm, matrix, disp=False)
    np.testing.assert_allclose(root, np.diag([2.0, 3.0]))
    assert error < 1e-15
    wrong, error = sqrtm_as_before(lambda x: x, matrix, disp=False)
    assert error == pytest.approx(np.hypot(12, 72) / np.hypot(4, 9))
    np.testing.assert_array_equal(sqrtm_as_before(lambda x: x, matrix), matrix)


def test_fid():
    """Four programs; counts above and below the number of features."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    fidelity = peer("torch_fidelity.metric_fid")
    pytorch_fid, clean = peer("pytorch_fid.fid_score"), peer("cleanfid.fid")
    for count, close in ((300, 1e-6), (40, 1e-3)):  # sqrtm of a singular matrix: 1e-3
        a, b = A[:count].astype(np.float64), B[:count].astype(np.float64)
        ours = FrechetDistance(gaussian(a))(gaussian(b))
        stats = [
            fidelity.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)
        ]
        theirs = fidelity.fid_statistics_to_metric(*stats, verbose=False)
        assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=close)
        arguments = (
            a.mean(0),
            np.cov(a, rowvar=False),
            b.mean(0),
            np.cov(b, rowvar=False),
        )
        for program in (
            pytorch_fid.calculate_frechet_distance,
            clean.frechet_distance,
        ):
            assert ours == pytest.approx(quietly(program, *arguments), rel=close)


def test_kid():
    """All pictures in one subset: nothing is left to chance."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    options = dict(kid_subsets=1, kid_subset_size=300, verbose=False)
    theirs = peer("torch_fidelity.metric_kid").kid_features_to_metric(
        torch.from_numpy(A.astype(np.float64)),
        torch.from_numpy(B.astype(np.float64)),
        **options,
    )
    counts, none = (300, 300), np.zeros((0, 300))
    ours, _, _ = kernel_distances.kid(
        A.__getitem__, B.__getitem__, counts=counts, draws=none
    )
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    double = A.astype(np.float64), B.astype(np.float64)
    theirs = peer("cleanfid.fid").kernel_distance(*double, num_subsets=1)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_inception_score():
    """torch-fidelity's in the order of the pictures, and guided-diffusion's formula."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    logits = 3 * np.random.default_rng(0).normal(size=(300, 20))
    theirs = peer("torch_fidelity.metric_isc").isc_features_to_metric(
        torch.from_numpy(logits), splits=3, shuffle=False
    )
    splits = logits[:100], logits[100:200], logits[200:]
    ours, _ = inception_score.inception_score(splits, np.zeros((0, 300)))
    assert ours == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    scores = []
    for part in splits:  # kl = part * (log part - log mean part), summed; exp of mean
        p = np.exp(part) / np.exp(part).sum(axis=1, keepdims=True)
        kl = (p * (np.log(p) - np.log(p.mean(axis=0, keepdims=True)))).sum(axis=1)
        scores.append(np.exp(kl.mean()))
    assert ours == pytest.approx(np.mean(scores), rel=1e-9)


def test_precision_recall_density_coverage():
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    reference, samples = features(1, 200, 8), features(2, 150, 8)
    result = manifolds.membership(blocks_of(reference), blocks_of(samples))
    pair = (torch.from_numpy(x.astype(np.float64)) for x in (samples, reference))
    theirs = peer("torch_fidelity.metric_prc").prc_features_to_metric(
        *pair, prc_neighborhood=3, prc_batch_size=64, verbose=False
    )
    # torch's cdist rounds otherwise: a picture on a border, 1 of 150, may change sides
    assert result.inside.mean() == pytest.approx(theirs["precision"], abs=1 / 150)
    assert result.recalled.mean() == pytest.approx(theirs["recall"], abs=1 / 150)
    theirs = peer("prdc.prdc").compute_prdc(reference, samples, nearest_k=5)
    assert result.density.mean() == pytest.approx(theirs["density"], abs=1e-3)
    assert result.covered.mean() == pytest.approx(theirs["coverage"], abs=1 / 200)


def test_guided_diffusion_s_precision_in_half_floats():
    """Its formula, with its f16 distances: |a|^2 - 2 ab + |b|^2, squared radii."""
    reference, samples = features(1, 200, 8), features(2, 200, 8)

    def squares(a, b):
        a, b = a.astype(np.float16), b.astype(np.float16)
        norms = (a**2).sum(1)[:, None], (b**2).sum(1)[None]
        return np.maximum(norms[0] - 2 * a @ b.T + norms[1], 0).astype(np.float32)

    radii = np.partition(squares(reference, reference), 3, axis=1)[:, 3]
    theirs = (squares(samples, reference) <= radii).any(axis=1).mean()
    result = manifolds.membership(blocks_of(reference), blocks_of(samples))
    # f16 has three digits: some hundredths of the pictures near a border
    assert result.inside.mean() == pytest.approx(theirs, abs=0.05)


@pytest.mark.parametrize("size", [(64, 48), (299, 299), (512, 400)])
@pytest.mark.parametrize("mode", MODES)
def test_resizing(mode, size):
    """Values to 255 in f32: 1e-3 is four ulps times the number of taps."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    x = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    planes = torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32))
    if mode == "clean":
        theirs = quietly(peer("cleanfid.resize").build_resizer("clean"), x)
    elif mode == "pytorch":
        options = dict(size=(299, 299), mode="bilinear", align_corners=False)
        made = torch.nn.functional.interpolate(planes, **options)
        theirs = made.numpy()[0].transpose(1, 2, 0)
    else:
        module = peer("torch_fidelity.interpolate_compat_tensorflow")
        made = module.interpolate_bilinear_2d_like_tensorflow1x(
            planes, size=(299, 299), align_corners=False
        )
        theirs = made.numpy()[0].transpose(1, 2, 0)
    np.testing.assert_allclose(resize(x, mode, 299), theirs, atol=1e-3)
