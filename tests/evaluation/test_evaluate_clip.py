"""evaluate generate with CLIP: the score of captions and CMMD, by transformers' CLIP.

A toy CLIP with random weights and a toy model of text; the figures are made again from
transformers' embeddings of the pictures in the file, by the formulas.
"""

import json

import numpy as np
import pytest

from lDM_jax.evaluation.image_sets import Data
from lDM_jax.from_config import datasets
from lDM_jax.pipeline import Pipeline
from lDM_jax.tools import evaluate
from lDM_jax.weights import directory as weights_directory
from tests.toy_clip import clip_embeds, toy_clip
from tests.toys import saved

pytestmark = [pytest.mark.live, pytest.mark.slow]
KNOWN, COUNT = 9, 12  # captions are taken in turn, three of them twice


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """exp(-|x - y|^2 / 200) of all pairs, f64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.exp(-((x[:, None] - y[None]) ** 2).sum(axis=2) / 200)


def test_clip_score_and_cmmd_of_a_text_model(tmp_path, capsys):
    clip = toy_clip(tmp_path / "model.safetensors")
    model = saved("emoji", tmp_path)
    pipe = Pipeline.load(model)
    pipe.config.data.limit = KNOWN
    weights_directory.save(tmp_path / "emoji", pipe.config.to_dict(), pipe.params)
    flags = f"--num={COUNT} --steps=2 --batch=8 --out={tmp_path / 'out'} --bootstrap=9"
    flags += f" --weights=clip={tmp_path / 'model.safetensors'}"
    both = ["--extractor=emoji", "--extractor=clip"]
    command = ["generate", f"--model={model}", *flags.split(), *both]
    assert evaluate.main(command) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["captions"] == KNOWN and "fd_emoji" in line  # in one pass

    source = datasets.source(pipe.config, "train")
    order = np.random.default_rng(0).permutation(KNOWN)
    texts = [str(source[int(order[i % KNOWN])]["caption"]) for i in range(COUNT)]
    with np.load(tmp_path / "out" / "samples.npz") as npz:
        pictures = npz["arr_0"]
    images, words = clip_embeds(clip, pictures, texts)
    cosines = (images.astype(np.float64) * words).sum(axis=1)
    assert cosines.min() < 0 < cosines.max()  # the score counts none below zero
    # f32 through two towers: 1e-5 of cosines of size 0.1, times 100
    expected = 100 * np.maximum(cosines, 0).mean()
    assert line["clip_score"] == pytest.approx(expected, abs=2e-3)
    low, high = line["clip_score_95"]
    assert low < line["clip_score"] < high

    known = Data(pipe.config, "train")
    real = clip_embeds(clip, np.stack(known.read(range(KNOWN))), ["a"])[0]
    pairs = (images, images), (real, real), (images, real)
    within, theirs, between = (kernel(*pair).mean() for pair in pairs)
    cmmd = 1000 * (within + theirs - 2 * between)
    # 1000 kernels of f32 embeddings: |x - y|^2 / 200 to 1e-7 / 100
    assert line["cmmd"] == pytest.approx(cmmd, abs=1e-4) and cmmd > 1e-2
