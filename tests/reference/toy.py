"""A toy checkpoint of an original first stage: its names, shapes, numbers and YAML.

Owns what the recording script and the tests share; needs no torch. The network is an
AutoencoderKL of one level and width 32: the names are the original's own for its kl-f8,
those of the first level. All entries are the first numbers of one array.
"""

import re

import numpy as np

from tests.reference import rule

NUMBERS = 32 * 32 * 9
DEEPER = re.compile(r"\.[1-9]\.(block|attn)|downsample|upsample|shortcut")
YAML = """\
model:
  base_learning_rate: 4.5e-06
  target: ldm.models.autoencoder.AutoencoderKL
  params:
    monitor: val/rec_loss
    embed_dim: 4
    lossconfig: {target: torch.nn.Identity}
    ddconfig: {double_z: true, z_channels: 4, resolution: 16, in_channels: 3, out_ch: 3,
      ch: 32, ch_mult: [1], num_res_blocks: 2, attn_resolutions: [], dropout: 0.0}
"""


def network_shapes() -> rule.Shapes:
    """Names and shapes of the network's entries."""
    published = rule.FOLDER / "original" / "fs_kl-f8" / "keys.tsv.gz"
    return {
        name: tuple(min(side, 32) for side in shape)
        for name, shape in rule.read_shapes(published).items()
        if not DEEPER.search(name)
    }


def loss_names() -> list[str]:
    """What the training loss of an original first stage adds to its state dict."""
    main = "loss.discriminator.main."
    found = ["loss.logvar", f"{main}0.weight", f"{main}0.bias", f"{main}11.bias"]
    found += [f"{main}{n}.weight" for n in (2, 3, 5, 6, 8, 9, 11)]
    statistics = ("bias", "running_mean", "running_var", "num_batches_tracked")
    found += [f"{main}{n}.{kind}" for n in (3, 6, 9) for kind in statistics]
    lpips = "loss.perceptual_loss."
    found += [f"{lpips}scaling_layer.{kind}" for kind in ("shift", "scale")]
    found += [f"{lpips}lin{n}.model.1.weight" for n in range(5)]
    slices = (0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)
    for number, layers in enumerate(slices, start=1):
        names = [f"{lpips}net.slice{number}.{layer}" for layer in layers]
        found += [f"{n}.{kind}" for n in names for kind in ("weight", "bias")]
    return found


def numbers() -> np.ndarray:
    """The numbers that all entries share, f16."""
    return (rule.noise("toy", (NUMBERS,)) / 16).astype(np.float16)


def entry(shape: tuple[int, ...]) -> np.ndarray:
    """An entry of that shape."""
    return numbers()[: int(np.prod(shape))].reshape(shape)


def state_dict() -> dict[str, np.ndarray]:
    """All entries: the network's, and the loss's with one number each."""
    shapes = network_shapes() | dict.fromkeys(loss_names(), (1,))
    return {name: entry(shape) for name, shape in shapes.items()}
