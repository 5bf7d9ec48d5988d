"""Vision transformers against transformers' DINOv2 and CLIP, by way of weight files.

Small networks with random weights, written as their authors' files are. 1e-4 of the
features' scale: f32 through a few blocks.
"""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from lDM_jax.core.errors import UserError
from lDM_jax.evaluation import extractors
from lDM_jax.models.vit import interpolation_matrix
from tests.reference import rule
from tests.toy_clip import clip_embeds, normalised, randomised, toy_clip

pytestmark = pytest.mark.live


def close(ours: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


PICTURES = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """(transformers' model, its weights in the names of DINOv2's authors)."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=518
    )
    model = Dinov2Model(config).eval()
    randomised(torch, model)
    theirs = {k: v.numpy() for k, v in model.state_dict().items()}
    result = {
        "cls_token": theirs["embeddings.cls_token"],
        "pos_embed": theirs["embeddings.position_embeddings"],
        "mask_token": theirs["embeddings.mask_token"],
    }
    for kind in ("weight", "bias"):
        patch = theirs[f"embeddings.patch_embeddings.projection.{kind}"]
        result[f"patch_embed.proj.{kind}"] = patch
        result[f"norm.{kind}"] = theirs[f"layernorm.{kind}"]
    keys = theirs.keys()
    for index in range(2):
        (root,) = {k[: k.index(".norm1")] for k in keys if f".{index}.norm1" in k}
        pick = {k[len(root) + 1 :]: v for k, v in theirs.items() if k.startswith(root)}
        qkv = {w: [k for k in pick if letters(k) == w] for w in "qkv"}
        block = f"blocks.{index}"
        for kind in ("weight", "bias"):
            parts = [pick[next(k for k in qkv[w] if k.endswith(kind))] for w in "qkv"]
            result[f"{block}.attn.qkv.{kind}"] = np.concatenate(parts)
            out = next(k for k in pick if letters(k) == "o" and k.endswith(kind))
            result[f"{block}.attn.proj.{kind}"] = pick[out]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                result[f"{block}.{name}.{kind}"] = pick[f"{name}.{kind}"]
        for which in "12":
            scale = pick[f"layer_scale{which}.lambda1"]
            result[f"{block}.ls{which}.gamma"] = scale
    path = tmp_path_factory.mktemp("dinov2") / "weights.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in result.items()}, path)
    return model, path


def letters(name: str) -> str:
    """q, k, v or o of an attention's entry, whatever transformers calls it."""
    if not name.startswith("attention"):
        return ""
    for word, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("dense", "o")):
        if word in name:
            return letter
    for letter in "qkvo":
        if f"{letter}_proj" in name:
            return letter
    return ""


@pytest.mark.slow
def test_dinov2(dinov2):
    """Its class token after the last norm; positions interpolated without the offset,
    which transformers leaves out."""
    import torch

    model, path = dinov2
    extractor = extractors.load_dinov2(str(path))
    from lDM_jax.models import vgg16, vit

    network = vit.ViT(128, 2, 2, interpolation_offset=0.0)
    x = normalised(PICTURES, 224, (vgg16.MEAN, vgg16.DEVIATION))
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).last_hidden_state[:, 0].numpy()
    run = rule.fast_jit(network.apply)
    ours = run(extractor.variables, x.transpose(0, 2, 3, 1))
    close(np.asarray(ours), expected)
    extractor = dataclasses.replace(extractor, rows=1)
    assert extractor.features(list(PICTURES))["pool"].shape == (2, 128)
    assert vit.ViT(1, 1, 1).interpolation_offset == 0.1


def test_positions_are_interpolated_with_the_authors_offset():
    """(16 + 0.1) / 37 as the scale factor of torch's bicubic interpolation."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    scale = 16.1 / 37
    grid = np.random.default_rng(0).normal(size=(1, 1, 37, 37))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(grid), scale_factor=(scale, scale), mode="bicubic"
    ).numpy()[0, 0]
    matrix = interpolation_matrix(37, 16, 0.1)
    np.testing.assert_allclose(matrix @ grid[0, 0] @ matrix.T, theirs, atol=1e-5)


@pytest.mark.slow
def test_clip_s_two_towers(tmp_path):
    """Images and texts of unit length, and so the cosine that the CLIP score is of."""
    path = tmp_path / "model.safetensors"
    model = toy_clip(path)
    extractor = dataclasses.replace(extractors.load_clip(str(path)), rows=1)
    texts = ["a cat", "red heart"]
    images, words = clip_embeds(model, PICTURES, texts)
    ours = extractor.features(list(PICTURES))["pool"], extractor.embed_texts(texts)
    close(ours[0], images)
    close(ours[1], words)


def test_missing_and_other_files_are_told(tmp_path):
    for name in ("dinov2", "clip"):
        with pytest.raises(UserError, match=f"--weights {name}=FILE"):
            extractors.load_extractor(name)
        path = tmp_path / f"{name}.safetensors"
        save_file({"a": np.zeros(3, np.float32)}, path)
        with pytest.raises(UserError, match="is not of this kind"):
            extractors.load_extractor(name, str(path))
