"""Encode a config's data set once: python -m lDM_jax.tools.encode_latents.

    python -m lDM_jax.tools.encode_latents --config configs/churches_ldm8.py \\
        --set data.path=DIR --set first_stage.path=FIRST_STAGE --out LATENTS
    python train.py --config=configs/churches_ldm8.py --workdir=runs/churches \\
        --config.data.source=latents --config.data.path=LATENTS \\
        --config.first_stage.path=FIRST_STAGE

Training then reads moments instead of encoding images. All devices of a host work,
and all hosts that share --out (--process 0/4 ... 3/4, where JAX does not know of them).
The same command continues after a kill and writes the same files. Images that cannot be
used are left out and listed in LATENTS/bad_examples.jsonl. A config that mirrors gets a
mirrored copy of everything; random crops, degradations and several captions are drawn
--draws times (config.data.cache_draws, or once) and then stay as they are. --embeddings
also stores what a frozen text tower makes of the captions.
"""

import argparse
import sys
from pathlib import Path

import jax

from lDM_jax.core.errors import UserError
from lDM_jax.data.bad_examples import Ledger
from lDM_jax.data.latents_cache import DTYPES, write_plan
from lDM_jax.from_config import datasets, encode_latents, networks
from lDM_jax.from_config.config_file import read_config
from lDM_jax.tools import log_to_stdout, make_main, parse_share


def run(args: argparse.Namespace) -> None:
    """Encode every split of the flags; see the module."""
    log_to_stdout()
    config, out = read_config(args.config, args.changes), Path(args.out)
    if config.stage != "diffusion":
        raise UserError("a latents cache is made for a second stage's config")
    if config.data.source == "latents":
        raise UserError("config.data.source is 'latents' already: give images")
    encode_latents.check_task(config)
    codec, params = networks.first_stage(config)
    networks.check_pixels(config, codec.factor)
    splits = {name: datasets.source(config, name) for name in args.splits.split(",")}
    draws = args.draws or encode_latents.draws_of(config)
    encode_latents.warn_of_frozen(config, next(iter(splits.values())), draws)
    options = dict(dtype=args.dtype, shard_size=args.shard_size, draws=draws)
    frozen = networks.frozen(config, params)
    (tower,) = networks.towers(config) if args.embeddings else (None,)
    options |= dict(embeddings=args.embeddings)
    plan = encode_latents.plan(config, frozen, splits, **options)
    write_plan(out, plan)
    process = jax.process_index(), jax.process_count()
    if args.process is not None:
        process = parse_share("--process", args.process)
    max_share = config.data.get("max_bad_share", 1.0)
    for name, source in splits.items():
        tail = f".{process[0]}" if process[0] else ""
        bad_file = out / name / f"bad_examples{tail}.jsonl"
        encode_latents.write_split(
            out,
            plan,
            name,
            source=source,
            codec=codec,
            params=params,
            row=encode_latents.copies(config, draws=draws, split=name),
            tower=tower and (tower.network.apply, frozen["text"]),
            batch_size=args.batch_size,
            num_workers=config.data.num_workers,
            ledger=Ledger(len(source), path=bad_file, max_share=max_share),
            process=process,
        )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--config", required=True, help="file, also with :argument")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes"
    )
    parser.add_argument("--out", required=True, help="directory of the cache")
    parser.add_argument("--splits", default="train,validation")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float16")
    parser.add_argument("--draws", type=int, help="of each random transform")
    parser.add_argument(
        "--embeddings", action="store_true", help="also of a frozen text tower"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="of this host")
    parser.add_argument("--shard_size", type=int, default=1024)
    parser.add_argument("--process", metavar="INDEX/COUNT", help="this host's share")


main = make_main("encode_latents", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
