"""A toy CLIP of transformers with random weights, and what it makes of pictures."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lDM_jax.data.tokenizers import ClipTokenizer
from lDM_jax.evaluation import extractors
from lDM_jax.evaluation.metrics.resize import resize


def normalised(x: np.ndarray, side: int, colours) -> np.ndarray:
    """uint8 -> "b 3 side side", resized as `clean`."""
    rows = np.stack([resize(picture, "clean", side) for picture in x])
    mean, deviation = (255 * np.array(c).reshape(1, 1, 1, 3) for c in colours)
    return ((rows - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)


def randomised(torch, model) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(0.2 * noise + (parameter.ndim == 1) * parameter)


def toy_clip(path):
    """transformers' CLIP with random weights for pictures of 56 px, stored."""
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    from transformers import CLIPConfig, CLIPModel

    common = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2)
    common |= dict(intermediate_size=512, projection_dim=24)
    config = CLIPConfig(
        vision_config=dict(**common, image_size=56, patch_size=14),
        text_config=dict(**common, vocab_size=49408, eos_token_id=49407),
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    randomised(torch, model)
    arrays = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    save_file(arrays, path)
    return model


def clip_embeds(model, x: np.ndarray, texts: list[str]) -> tuple:
    """What transformers makes of pictures and texts: twice f32 "n d", of length 1."""
    import torch

    ids = ClipTokenizer()(texts)
    with torch.no_grad():
        made = model(
            input_ids=torch.from_numpy(ids.astype(np.int64)),
            pixel_values=torch.from_numpy(normalised(x, 56, extractors.CLIP_COLORS)),
        )
    return made.image_embeds.numpy(), made.text_embeds.numpy()
