"""Work directory -> weights directory: python -m lDM_jax.tools.export.

    python -m lDM_jax.tools.export --workdir runs/emoji --out emoji [--half]

Writes the EMA weights as safetensors with their config. A first stage gets its latent
scale, 1 / std over latents of its training data, stored beside it: a number, or a list
of one a channel with --per_channel_scale.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lDM_jax import build, experiment, weights
from lDM_jax.arrays import UserError
from lDM_jax.codec import Codec, Scale, latent_scale


def export(
    workdir: str, out: str, *, half: bool = False, per_channel_scale: bool = False
) -> None:
    """Write `out` from the newest whole checkpoint of `workdir`."""
    config, params = build.load_trained(workdir)
    plain = config.to_dict()
    if config.stage == "autoencoder":
        plain["latent_scale"] = measure(config, params, per_channel=per_channel_scale)
    elif per_channel_scale:
        raise UserError(f"{workdir} is no first stage: it has no latent scale to store")
    weights.save(Path(out), plain, params, half=half)


def measure(config: ConfigDict, params: dict, *, per_channel: bool = False) -> Scale:
    """The latent scale over the first images of the training split."""
    codec = Codec(build.autoencoder(config.autoencoder))
    row = experiment.transform(config)
    data = experiment.source(config, "train")
    limit = experiment.SCALE_SAMPLE_IMAGES
    encoded = experiment.encode(codec, params, data, row, limit=limit)
    moments = encoded["moments"][:limit]
    return latent_scale(codec, moments, jax.random.key(0), per_channel=per_channel)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lDM_jax.tools.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--half", action="store_true", help="store f16")
    parser.add_argument(
        "--per_channel_scale",
        action="store_true",
        help="store one latent scale a channel instead of one for all",
    )
    args = parser.parse_args(argv)
    options = dict(half=args.half, per_channel_scale=args.per_channel_scale)
    try:
        export(args.workdir, args.out, **options)
    except (UserError, OSError) as error:
        sys.stderr.write(f"export: error: {' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
