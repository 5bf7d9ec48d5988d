"""InceptionV3 against torch-fidelity's network, and pytorch-fid's from file to FID.

Both sides have the same random weights, of a scale that keeps activations alive, in a
file as torch writes it. 1e-4 of the features' scale: f32 through 90 layers.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation import extractors, sides
from lDM_jax.evaluation.metrics.frechet import FrechetDistance
from lDM_jax.evaluation.metrics.statistics import Gaussian
from lDM_jax.models import inception, vgg16
from tests.peers import peer, quietly, torchvision
from tests.reference import rule

BLOCKS = {
    "Mixed_5b": "FIDInceptionA",
    "Mixed_5c": "FIDInceptionA",
    "Mixed_5d": "FIDInceptionA",
    "Mixed_6b": "FIDInceptionC",
    "Mixed_6c": "FIDInceptionC",
    "Mixed_6d": "FIDInceptionC",
    "Mixed_6e": "FIDInceptionC",
    "Mixed_7b": "FIDInceptionE_1",
    "Mixed_7c": "FIDInceptionE_2",
}


def test_shapes_of_the_published_network():
    """Keras counts 23,851,784 numbers in InceptionV3: three a normalized channel (it
    has no weight there), 1,000 classes with bias, and the convolutions."""
    shapes = inception.inception_shapes()
    kernels = sum(np.prod(s) for p, s in shapes.items() if p[-1] == "kernel")
    norms = [s[0] for p, s in shapes.items() if p[-1] == "running_var"]
    assert len(norms) == 94  # convolutions
    convolutions = kernels - 2048 * 1008
    assert convolutions + 3 * sum(norms) + 2049 * 1000 == 23_851_784
    x = jax.ShapeDtypeStruct((2, 299, 299, 3), np.float32)
    network = inception.Inception()
    made = jax.eval_shape(network.init_with_output, jax.random.key(0), x)[0]
    result = {key: value.shape for key, value in made.items()}
    assert result == {"pool": (2, 2048), "spatial": (2, 2023), "logits": (2, 1008)}


def state_dict(torch, network) -> dict:
    """Random weights: He's scale, and statistics of no special value."""
    draw, result = np.random.default_rng(0), {}
    for name, old in network.state_dict().items():
        shape = tuple(old.shape)
        if name.endswith("num_batches_tracked"):
            continue
        if len(shape) > 1:
            values = draw.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith(("running_var", "bn.weight")):
            values = draw.uniform(0.7, 1.3, shape)
        else:
            values = draw.normal(0, 0.1, shape)
        result[name] = torch.from_numpy(values.astype(np.float32))
    return result


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(torch-fidelity's network, its weight file)."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    module = peer("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    kind = module.FeatureExtractorInceptionV3
    layers = ["2048", "logits_unbiased"]
    blank = {}
    real = torch.load
    # Its constructor loads weights: let it load its own random ones.
    try:
        torch.load = lambda *args, **kwargs: blank
        torch.nn.Module.load_state_dict, kept = (
            lambda self, *a, **k: None,
            torch.nn.Module.load_state_dict,
        )
        network = kind("inception", layers, feature_extractor_weights_path="none")
    finally:
        torch.load, torch.nn.Module.load_state_dict = real, kept
    weights = state_dict(torch, network)
    network.load_state_dict(weights, strict=False)
    torch.save(weights, path)
    return network.eval(), path


def close(ours: np.ndarray, expected: np.ndarray):
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.live
@pytest.mark.slow
def test_torch_fidelity_s_features_from_uint8(theirs):
    """Resizing, scaling, network and head; an odd number of images on 8 devices."""
    import torch

    network, path = theirs
    x = np.random.default_rng(1).integers(0, 256, (3, 64, 80, 3), np.uint8)
    with torch.no_grad():
        pool, logits = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    extractor = dataclasses.replace(extractors.load_inception(path), rows=1)
    ours = extractor.features(list(x))
    close(ours["pool"], pool.numpy())
    close(ours["logits"], logits.numpy())
    assert extractor.record()["weights_sha256"] == extractors.file_digest(path)


@pytest.mark.live
def test_pytorch_fid_s_blocks_and_the_spatial_features(theirs):
    """Its own forward functions; seven channels of Mixed_6d's first convolution."""
    import torch

    network, path = theirs
    blocks = peer("pytorch_fid.inception")
    seen = {}
    for name, kind in BLOCKS.items():
        block, forward = getattr(network, name), getattr(blocks, kind).forward
        block.forward = lambda h, f=forward, b=block: f(b, h)
    network.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, given, made: seen.update(first=made)
    )
    x = np.random.default_rng(2).uniform(-1, 1, (2, 107, 107, 3)).astype(np.float32)
    with torch.no_grad():
        h = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
            h = getattr(network, name)(h)
        h = torch.nn.functional.max_pool2d(h, 3, 2)
        h = network.Conv2d_4a_3x3(network.Conv2d_3b_1x1(h))
        h = torch.nn.functional.max_pool2d(h, 3, 2)
        names = sorted(n for n, _ in network.named_children() if n.startswith("Mixed"))
        for name in names:
            h = getattr(network, name)(h)
    ours = rule.fast_jit(inception.Inception().apply)(
        extractors.read_inception(path), x
    )
    close(ours["pool"], h.mean(dim=(2, 3)).numpy())
    spatial = seen["first"][:, :7].permute(0, 2, 3, 1).reshape(2, -1)
    close(ours["spatial"], spatial.numpy())


@pytest.fixture
def pytorch_fid(theirs, monkeypatch):
    """pytorch-fid's own program; what it downloads is our file."""
    import torch

    torchvision()
    networks, path = peer("pytorch_fid.inception"), theirs[1]
    weights = torch.load(path, weights_only=True)
    monkeypatch.setattr(networks, "load_state_dict_from_url", lambda *_, **__: weights)
    return peer("pytorch_fid.fid_score")


@pytest.fixture
def folders(tmp_path):
    """Two folders of ten PNGs, smooth colors of two kinds with noise."""
    made, ramp = [], np.linspace(0, 1, 70)[:, None, None]
    for index, name in enumerate("ab"):
        draw, folder = np.random.default_rng(index), tmp_path / name
        folder.mkdir()
        for number in range(10):
            ends = draw.integers(0, 200 - 90 * index, (2, 1, 1, 3))
            x = (
                ends[0] * ramp
                + ends[1] * (1 - ramp)
                + draw.integers(0, 56, (70, 90, 3))
            )
            Image.fromarray(x.astype(np.uint8)).save(folder / f"{number}.png")
        made.append(folder)
    return made


@pytest.mark.live
@pytest.mark.slow
def test_pytorch_fid_from_files_to_the_figure(pytorch_fid, theirs, folders, tmp_path):
    """Its network, resize, reading of files and statistics: 1e-4. Then its FID, of the
    first 256 features; `python -m benchmarks.fid agree` has all of them, whose root
    takes minutes."""
    network = pytorch_fid.InceptionV3([3])
    extractor = extractors.load_extractor("inception-pytorch", str(theirs[1]))
    extractor, pairs = dataclasses.replace(extractor, rows=2), ([], [])
    for folder in folders:
        program = pytorch_fid.compute_statistics_of_path
        mean, covariance = program(str(folder), network, 4, 2048, "cpu", 0)
        ours = sides.open_side(folder, extractor, tmp_path / f"{folder.name}.work")
        close(ours.pool.mean, mean)
        close(ours.pool.covariance, covariance)
        for pair, result in zip(pairs, (ours.pool, (mean, covariance)), strict=True):
            pair.append(Gaussian(result[0][:256], result[1][:256, :256]))
    numbers = [number for gaussian in pairs[1] for number in gaussian[:2]]
    fid = quietly(pytorch_fid.calculate_frechet_distance, *numbers)
    # its root of a singular matrix is good to about 1e-3 of the distance
    assert (
        FrechetDistance(pairs[0][0])(pairs[0][1]) == pytest.approx(fid, rel=1e-3)
        and fid > 1e-3
    )


def test_another_network_s_file_is_refused_in_one_line(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    save_file({"fc.weight": np.zeros((1000, 2048), np.float32)}, path)
    with pytest.raises(UserError) as error:
        extractors.load_inception(str(path))
    text = str(error.value)
    assert "is not the InceptionV3 of FID" in text and "\n" not in text
    assert "(1000, 2048) instead of (1008, 2048)" in text


def test_a_missing_weight_file_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_JAX_CACHE", str(tmp_path))
    url = (tmp_path / "elsewhere" / "pt_inception-2015-12-05-6726825d.pth").as_uri()
    monkeypatch.setattr(extractors, "INCEPTION_URL", url)
    with pytest.raises(UserError) as error:
        extractors.load_extractor("inception")
    for part in (url, str(tmp_path / "pt_inception"), "--extractor=emoji"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="no weights of vgg at"):
        extractors.load_extractor("vgg", str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="valid: emoji, inception"):
        extractors.load_extractor("resnet")


def test_vgg16_s_names_and_size():
    """Simonyan and Zisserman's network D up to fc2: 138,357,544 less the last layer."""
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(vgg16.VGG16().init, jax.random.key(0), x)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == 138_357_544 - 4096 * 1000 - 1000


def torch_vgg16(torch):
    """VGG16 in torchvision's order, without the last layer."""
    from lDM_jax.models.lpips import VGG16_WIDTHS

    nn, layers, inputs = torch.nn, [], 3
    relu = functools.partial(nn.ReLU, inplace=True)
    for widths in VGG16_WIDTHS:
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), relu()]
            inputs = width
        layers.append(nn.MaxPool2d(2, 2))
    dense = [nn.Linear(25088, 4096), relu(), nn.Dropout(), nn.Linear(4096, 4096)]
    network = nn.Module()
    network.features = nn.Sequential(*layers)
    network.classifier = nn.Sequential(*dense)
    return network


@pytest.mark.live
def test_torchvision_s_own_list_of_layers():
    """Ours for the original precision and recall, and the one that LPIPS is tested on
    (`tests/reference/record_metrics.py`). No numbers are made."""
    module = torchvision()
    pytest.importorskip("skimage", reason="needs requirements-dev.txt")
    import torch

    from tests.reference import record_metrics

    with torch.device("meta"):
        expected = module.models.vgg16(weights=None, init_weights=False)
        ours, recorded = torch_vgg16(torch), record_metrics.vgg16()
    assert list(map(repr, ours.features)) == list(map(repr, expected.features))
    last = slice(0, 30)  # LPIPS ends before the last pooling
    assert list(map(repr, recorded.features)) == list(
        map(repr, expected.features[last])
    )
    dense = list(map(repr, expected.classifier))
    assert list(map(repr, ours.classifier)) == dense[:4]
    places = {name: value.shape for name, value in ours.state_dict().items()}
    theirs = {name: value.shape for name, value in expected.state_dict().items()}
    rest = {"classifier.6.weight": (1000, 4096), "classifier.6.bias": (1000,)}
    assert places | rest == theirs


@pytest.mark.live
@pytest.mark.slow
def test_vgg16_against_torch_s_layers(tmp_path):
    """torch-fidelity's input and torch's own layers in torchvision's order."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    network = torch_vgg16(torch)
    weights = state_dict(torch, network)
    network.load_state_dict(weights)
    path = tmp_path / "vgg16.pth"
    torch.save(weights | {"classifier.6.bias": torch.zeros(1000)}, path)
    x = np.random.default_rng(0).integers(0, 256, (1, 90, 70, 3), np.uint8)
    resized = peer("torch_fidelity.interpolate_compat_tensorflow")
    planes = torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))
    h = resized.interpolate_bilinear_2d_like_tensorflow1x(
        planes, size=(224, 224), align_corners=False
    )
    mean, deviation = (
        255 * torch.tensor(v).reshape(1, 3, 1, 1)
        for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        h = network.eval().features((h - mean) / deviation)
        expected = torch.relu(network.classifier(h.flatten(1)))
    extractor = dataclasses.replace(extractors.load_vgg(str(path)), rows=1)
    close(extractor.features(list(x))["pool"], expected.numpy())
