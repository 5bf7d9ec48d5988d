"""Weights of other programs <-> ours: python -m lDM_jax.tools.convert.

    --checkpoint model.ckpt --config model.yaml --out DIR    original latent-diffusion
    --from diffusers DIR --out DIR                           diffusers
    --to diffusers DIR --model NAME_OR_DIR                   ours, to diffusers
    --to original DIR --model NAME_OR_DIR                    ours, to the original

Reads first stages and whole latent diffusion models: of the original program (and of
Stable Diffusion 1.x and 2.x, which are built on it) by their YAML, of diffusers by
their directory. A checkpoint is torch's (either format) or safetensors; pickles are
read, never executed. Every entry must be known and every parameter filled; what a
checkpoint holds besides is left out by name, and said. Arrays pass one at a time. The
directory is written whole or not at all, and then works wherever a weights directory
does: `Pipeline.load`, `config.first_stage.path`, `config.init_from`, `evaluate`.

Reading order: reading, the last line of the report, flags.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from lDM_jax.core.errors import UserError
from lDM_jax.from_config import networks
from lDM_jax.interop import converted
from lDM_jax.interop.converted import Converted
from lDM_jax.interop.diffusers import read as from_diffusers
from lDM_jax.interop.diffusers import write as to_diffusers
from lDM_jax.interop.original import read as from_original
from lDM_jax.interop.original import settings as original_settings
from lDM_jax.interop.original import write as to_original
from lDM_jax.tools import make_main
from lDM_jax.weights import torch_file

PROGRAMS = ("diffusers", "original")


def read_original(checkpoint: str, config: str, **options) -> Converted:
    """A checkpoint of the original program and its YAML; options of `from_original`."""
    try:
        text = Path(config).expanduser().read_text()
        model = yaml.safe_load(text)["model"]
        target, params = model["target"], model["params"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{config} cannot be read as YAML: {error}") from None
    except (KeyError, TypeError):
        raise UserError(f"{config} has no model.target and model.params") from None
    if not isinstance(params, Mapping):
        raise UserError(f"{config}: model.params should be a table of values")
    return from_original.read(target, params, torch_file.read(checkpoint), **options)


def write_theirs(program: str, model: str, out: str) -> list[str]:
    """A model of ours as another program stores it; the report's lines."""
    if program == "diffusers":
        files, report = to_diffusers.export(model)
    else:
        original = to_original.export(model)
        text = yaml.safe_dump({"model": original.model}, sort_keys=False)
        files = {"model.safetensors": original.tensors, "config.yaml": text}
        report = original.report
    to_diffusers.write(files, out)
    return [*report, f"wrote {out}"]


def describe(config: Mapping) -> str:
    """One line about a converted model."""
    if config["stage"] == "diffusion":
        unet = config["unet"]
        return (
            f"second stage: task {config['task']}, predicts "
            f"{config['process']['prediction']}, UNet of width {unet['width']} x "
            f"{tuple(unet['width_mults'])}, {config['data']['size_px']} px"
        )
    if config["stage"] == "text":
        return f"text tower: {config['text']['network']}"
    network = networks.autoencoder(config["autoencoder"])
    kind = "KL" if network.is_kl else f"VQ, {network.num_codes} codes"
    scale = config.get("latent_scale") or "not known (a second stage will measure it)"
    return (
        f"first stage: {kind}, f = {network.factor}, {network.latent_channels} latent "
        f"channels; latent scale: {scale}"
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--checkpoint", help="file of the original program")
    parser.add_argument("--config", help="its YAML")
    pair = dict(nargs=2, metavar=("PROGRAM", "DIR"))
    parser.add_argument("--from", dest="source", **pair, help="read: diffusers DIR")
    parser.add_argument(
        "--to", dest="target", **pair, help="write: diffusers DIR, or original DIR"
    )
    parser.add_argument("--model", help="ours: shipped name, work or weights directory")
    parser.add_argument("--out", help="directory to write")
    parser.add_argument("--half", action="store_true", help="store f16")
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        default="",
        help="averaged or trained weights (default: averaged where there are some)",
    )
    parser.add_argument(
        "--heads",
        choices=original_settings.HEADS,
        default="auto",
        help="where spatial transformers meet num_head_channels: 1 head (release), "
        "channels / num_head_channels (head), or as the released models want it (auto)",
    )
    parser.add_argument("--scale", type=float, help="latent scale, where you know it")


def run(args: argparse.Namespace) -> str:
    """Convert what the flags name; returns the report."""
    for pair, valid in ((args.source, PROGRAMS[:1]), (args.target, PROGRAMS)):
        if pair and pair[0] not in valid:
            raise UserError(
                f"program {pair[0]!r} is unknown; valid: {', '.join(valid)}"
            )
    if [args.checkpoint, args.source, args.target].count(None) != 2:
        raise UserError("give exactly one of --checkpoint, --from and --to")
    if args.target:
        if not args.model:
            raise UserError("--to needs --model")
        program, out = args.target
        converted.check_free(out)
        return "\n".join(write_theirs(program, args.model, out))
    if not args.out:
        raise UserError("give --out, the directory to write")
    if args.checkpoint and not args.config:
        raise UserError("--checkpoint needs --config, the YAML of the model")
    if args.scale is not None and not 0 < args.scale < float("inf"):
        raise UserError(f"--scale={args.scale} should be a positive number")
    converted.check_free(args.out)
    if args.source:
        model = from_diffusers.read(args.source[1], scale=args.scale)
    else:
        options = dict(weights=args.weights, heads=args.heads, scale=args.scale)
        model = read_original(args.checkpoint, args.config, **options)
    converted.write_ours(model, args.out, half=args.half)
    lines = [describe(part.config) for part in model.parts.values()]
    return "\n".join([*model.report, *lines, f"wrote {args.out}"])


main = make_main("convert", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
