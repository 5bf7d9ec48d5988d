"""Work directory -> weights directory: python -m lDM_jax.tools.export.

    python -m lDM_jax.tools.export --workdir runs/emoji --out emoji [--half]

Writes the EMA weights as safetensors with their config. A first stage gets its latent
scale, 1 / std over latents of its training data, stored beside it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lDM_jax import build, weights
from lDM_jax.arrays import UserError
from lDM_jax.codec import Codec, latent_scale


def export(workdir: str, out: str, *, half: bool = False) -> None:
    """Write `out` from the newest whole checkpoint of `workdir`."""
    config, params = build.load_trained(workdir)
    plain = config.to_dict()
    if config.stage == "autoencoder":
        plain["latent_scale"] = measure(config, params)
    weights.save(Path(out), plain, params, half=half)


def measure(config: ConfigDict, params: dict) -> float:
    """The latent scale over the first images of the training split."""
    codec = Codec(build.autoencoder(config.autoencoder))
    row = build.transform(config)
    data = build.source(config, "train")
    limit = build.SCALE_SAMPLE_IMAGES
    encoded = build.encode(codec, params, data, row, limit=limit)
    return latent_scale(codec, encoded["moments"][:limit], jax.random.key(0))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lDM_jax.tools.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--half", action="store_true", help="store f16")
    args = parser.parse_args(argv)
    try:
        export(args.workdir, args.out, half=args.half)
    except (UserError, OSError) as error:
        sys.stderr.write(f"export: error: {' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
