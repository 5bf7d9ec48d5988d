"""What the packages lpips and scikit-image answer, and the recording of it.

    python -m tests.reference.record_metrics

writes lpips.npz and similarity.npz beside this file. VGG16's weights and the pictures
are functions of names (`metrics_inputs`), the heads of the recorded LPIPS are those of
the package, version 0.1. The live tests call the same code under another `salt`, with
random heads. Arrays are NHWC.
"""

import sys
import types
import warnings

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from tests.reference import metrics_inputs, rule


def vgg16(pretrained: bool = False) -> types.SimpleNamespace:
    """torchvision's VGG16 up to its last activation, as `features`."""
    layers, channels = [], 3
    for index, widths in enumerate(metrics_inputs.WIDTHS):
        layers += [nn.MaxPool2d(2, 2)] if index else []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return types.SimpleNamespace(features=nn.Sequential(*layers))


def import_lpips():
    """The package lpips; all that it takes from torchvision is the list of layers."""
    import scipy.ndimage  # noqa: F401  (both before the stand-in is in place)
    import tqdm  # noqa: F401

    name = "torchvision"
    stand_in, before = types.ModuleType(name), sys.modules.get(name)
    stand_in.models = types.SimpleNamespace(vgg16=vgg16)
    sys.modules[name] = stand_in
    try:
        import lpips
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
    return lpips


def build(salt: str, *, own_heads: bool) -> nn.Module:
    """The package's LPIPS on VGG16 by the rule; its own heads, or those by the rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = import_lpips().LPIPS(
            pretrained=own_heads,
            net="vgg",
            version="0.1",
            pnet_rand=True,
            verbose=False,
        )
    arrays = metrics_inputs.vgg16(salt)
    for name, parameter in model.net.named_parameters():
        parameter.data = torch.from_numpy(arrays[f"features.{name[7:]}"])
    if not own_heads:
        for name, array in metrics_inputs.heads(salt).items():
            model.get_parameter(name).data = torch.from_numpy(array)
    return model.eval()


def answer(model: nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Distances "b", and the gradients of their sum by both pictures; computed in f64.

    So that only the other side's rounding decides about ReLUs at the edge.
    """
    arrays = [inputs[name].transpose(0, 3, 1, 2) for name in ("x", "y")]
    leaves = [torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in arrays]
    distance = model.double()(*leaves).reshape(-1)
    distance.sum().backward()
    grads = [rule.last(leaf.grad.numpy()).astype(np.float32) for leaf in leaves]
    found = dict(grad_x=grads[0], grad_y=grads[1])
    return found | {"distance": distance.detach().numpy()}


def similarity(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """scikit-image's PSNR and SSIM (with Wang's window) of each pair of pictures."""
    window = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    pairs = list(zip(inputs["x_hat"], inputs["x"], strict=True))
    return dict(
        psnr=[peak_signal_noise_ratio(x, x_hat, data_range=255) for x_hat, x in pairs],
        ssim=[
            structural_similarity(x_hat, x, data_range=255, channel_axis=-1, **window)
            for x_hat, x in pairs
        ],
    )


def main() -> None:
    """Write both files."""
    found = answer(build("lpips/", own_heads=True), metrics_inputs.floats("lpips/"))
    np.savez_compressed(rule.FOLDER / "lpips.npz", **found)
    found = similarity(metrics_inputs.pixels("similarity/"))
    np.savez_compressed(rule.FOLDER / "similarity.npz", **found)


if __name__ == "__main__":
    main()
