"""The weights of `models.lpips`: VGG16 from torchvision's file, heads from the assets.

The heads (6 KB) are shipped: `assets/lpips_vgg_heads.safetensors` holds the entries of
weights/v0.1/vgg.pth of the package lpips 0.1.4 as they are. VGG16's convolutions (59 MB
of a file of 553 MB) are looked for at that path, then in the cache, and are else
downloaded into it (`downloads.fetch`).
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lDM_jax.core.arrays import Array
from lDM_jax.core.errors import UserError
from lDM_jax.models.lpips import LPIPS
from lDM_jax.weights import torch_file
from lDM_jax.weights.directory import ASSETS
from lDM_jax.weights.downloads import fetch
from lDM_jax.weights.name_maps import Names, from_original, make_names

HEADS = ASSETS / "lpips_vgg_heads.safetensors"
VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
# The name itself carries only the first eight digits.
VGG16_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
WITHOUT = "train without it: config.loss.perceptual_weight = 0.0"


def load_lpips(path: str | os.PathLike = "") -> dict:
    """The variables of `LPIPS()`, f32 numpy.

    path: VGG16 as torchvision names it ("features.0.weight", ..), a torch file or
    safetensors; "" for the cache or a download. Its classifier is not read. UserError
    for a file that is not VGG16, or that cannot be had.
    """
    if not os.fspath(path):
        path = fetch(VGG16_URL, sha256_prefix=VGG16_SHA256, otherwise=WITHOUT)
    names = lpips_names(LPIPS())
    heads = {name: names.pop(name) for name in list(names) if name.startswith("lin")}
    state_dict = torch_file.read(path)
    try:
        params = from_original(state_dict, names, ignored=("classifier.",))["params"]
    except UserError as error:
        raise UserError(f"{path} is not torchvision's VGG16: {error}") from None
    params |= from_original(torch_file.read(HEADS), heads)["params"]
    return {"params": params}


def lpips_names(network: LPIPS) -> Names:
    """torchvision's names of the convolutions, those of lpips for the heads."""
    numbers, number = [], 0
    for widths in network.widths:
        numbers += [number + 2 * index for index in range(len(widths))]
        number += 2 * len(widths) + 1  # a convolution and a ReLU each; the maximum

    def translate(modules: tuple[str, ...]) -> tuple[str, str]:
        kind, _, index = modules[0].partition("_")
        if kind == "heads":
            return f"lin{index}.model.1", "conv1"
        return f"features.{numbers[int(index)]}", "conv"

    side = 2 ** len(network.widths)
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return make_names(network, (x, x), translate)


def make_distance(path: str | os.PathLike = "") -> Callable[[Array, Array], Array]:
    """LPIPS as a metric: (x_hat, x) f32 [-1, 1] "b H W 3" -> f32 "b", in full f32.

    path: as for `load_lpips`. Compiled once for each shape.
    """
    variables, network = jax.device_put(load_lpips(path)), LPIPS()
    apply = jax.jit(network.apply)

    def distance(x_hat: Array, x: Array) -> Array:
        with jax.default_matmul_precision("highest"):
            return apply(variables, x_hat, x)

    return distance
