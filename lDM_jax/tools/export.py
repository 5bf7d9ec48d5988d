"""Work directory -> weights directory: python -m lDM_jax.tools.export.

    python -m lDM_jax.tools.export --workdir runs/emoji --out emoji [--half]

Writes the EMA weights as safetensors with their config. A first stage gets stored
beside it, from the first images of its training data: its latent scale, 1 / std of
their latents (a number, or one a channel with --per_channel_scale), and `latent_rgb`,
the matrix of previews (`lDM_jax.sampling.preview`).
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.data.sources import First
from lDM_jax.diffusion.codec import Codec, latent_scale
from lDM_jax.from_config import networks
from lDM_jax.sampling import preview
from lDM_jax.tools import make_main
from lDM_jax.training import experiment
from lDM_jax.weights import directory as weights_directory


def export(
    workdir: str, out: str, *, half: bool = False, per_channel_scale: bool = False
) -> None:
    """Write `out` from the newest whole checkpoint of `workdir`."""
    config, params = networks.load_trained(workdir)
    fields = config.to_dict()
    if config.stage == "autoencoder":
        fields |= measure(config, params, per_channel=per_channel_scale)
    elif per_channel_scale:
        raise UserError(f"{workdir} is no first stage: it has no latent scale to store")
    weights_directory.save(Path(out), fields, params, half=half)


def measure(config: ConfigDict, params: dict, *, per_channel: bool = False) -> dict:
    """{"latent_scale", "latent_rgb"} over the first images of the training split."""
    codec = Codec(networks.autoencoder(config.autoencoder))
    source = First(experiment.source(config, "train"), experiment.SCALE_SAMPLE_IMAGES)
    row = experiment.transform(config)
    batches = data_pipeline.batches_once(source, row, batch_size=32)
    images = [batch["image"][batch["weight"] > 0] for batch in batches]
    encode = jax.jit(codec.moments)
    moments = np.concatenate([encode(params, batch) for batch in images])
    scale = latent_scale(codec, moments, jax.random.key(0), per_channel=per_channel)
    rgb = preview.fit(codec, params, images).tolist()
    return {"latent_scale": scale, "latent_rgb": rgb}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--half", action="store_true", help="store f16")
    parser.add_argument(
        "--per_channel_scale",
        action="store_true",
        help="store one latent scale a channel instead of one for all",
    )


def run(args: argparse.Namespace) -> None:
    """Export what the flags name."""
    options = dict(half=args.half, per_channel_scale=args.per_channel_scale)
    export(args.workdir, args.out, **options)


main = make_main("export", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
