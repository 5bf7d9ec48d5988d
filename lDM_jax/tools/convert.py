"""Weights of other programs <-> ours: python -m lDM_jax.tools.convert.

    --checkpoint model.ckpt --config model.yaml --out DIR    original latent-diffusion
    --from diffusers DIR --out DIR                           diffusers
    --to diffusers DIR --model NAME_OR_DIR                   ours, to diffusers

Reads first stages: AutoencoderKL, VQModel and VQModelInterface of the original program,
AutoencoderKL and VQModel of diffusers. A checkpoint is torch's (either format) or
safetensors; pickles are read, never executed. Every entry must be known and every
parameter filled; what an original checkpoint holds besides (discriminator, LPIPS) is
left out by name. The directory is written whole or not at all, and then works wherever
a weights directory does: `config.first_stage.path`, `Pipeline.load`, `evaluate`.

Reading order: what a conversion gives, one function a kind of model, writing, flags.
"""

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import yaml

from lDM_jax import architectures, build, convert, names, torch_file, weights
from lDM_jax.arrays import UserError

DEFAULT_SIZE_PX = 256
DIFFUSERS_CONFIG = "config.json"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
ENDINGS = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")


class Converted(NamedTuple):
    """A model in our terms: the config to store, variables, and the report's lines."""

    config: dict
    params: dict
    report: list[str]


def original_first_stage(
    params: Mapping, state_dict: torch_file.TorchFile, *, is_kl: bool, raw: bool
) -> Converted:
    """`AutoencoderKL`, or `VQModel` whose EMA is taken where it has one (`use_ema`)."""
    section = architectures.original_first_stage(params, is_kl=is_kl)
    table = names.autoencoder_names(build.autoencoder(section))
    averages = convert.ema_names(table, root="")
    ignored = names.LOSS_PREFIXES
    if raw:
        ignored += ("model_ema.",)
    elif params.get("use_ema") or averages.keys() & state_dict.keys():
        table = convert.unused(table) | averages
        ignored += names.EMA_PREFIXES
    config = first_stage_config(
        section, size_px=params["ddconfig"]["resolution"], scale=0.0
    )
    return finish(config, state_dict, table, ignored)


def diffusers_first_stage(
    config: Mapping, state_dict: torch_file.TorchFile
) -> Converted:
    """`AutoencoderKL` or `VQModel`, also with the names before diffusers 0.15."""
    section = architectures.diffusers_first_stage(config)
    old = any(name.endswith(".query.weight") for name in state_dict)
    network = build.autoencoder(section)
    table = names.diffusers_autoencoder_names(network, old_attention=old)
    size = config.get("sample_size")
    usable = type(size) is int and size > 0 and size % network.factor == 0
    plain = first_stage_config(
        section,
        size_px=size if usable else DEFAULT_SIZE_PX,
        scale=architectures.diffusers_scale(config),
    )
    return finish(plain, state_dict, table)


# What a YAML's model.target, or diffusers' _class_name, is read by.
Reader = Callable[..., Converted]
ORIGINAL: dict[str, tuple[Reader, dict]] = {
    "ldm.models.autoencoder.AutoencoderKL": (original_first_stage, {"is_kl": True}),
    "ldm.models.autoencoder.VQModel": (original_first_stage, {"is_kl": False}),
    "ldm.models.autoencoder.VQModelInterface": (original_first_stage, {"is_kl": False}),
}
DIFFUSERS: dict[str, Reader] = {
    "AutoencoderKL": diffusers_first_stage,
    "VQModel": diffusers_first_stage,
}


def first_stage_config(section: dict, *, size_px: int, scale: float) -> dict:
    """The config stored beside a first stage; no latent_scale where it is not known."""
    data = dict(source="emoji", path="", size_px=size_px, flip=0.0, limit=0)
    data |= dict(background="white", num_workers=0)
    config = dict(stage="autoencoder", seed=0, autoencoder=section, data=data)
    return config | ({"latent_scale": scale} if scale else {})


def finish(
    config: dict,
    state_dict: torch_file.TorchFile,
    table: convert.Names,
    ignored: Sequence[str] = (),
) -> Converted:
    """Convert by exact cover and say what was used."""
    params = convert.from_original(state_dict, table, ignored=ignored)
    used = {name for name, entry in table.items() if entry.path is not None}
    left = Counter(name.partition(".")[0] for name in state_dict.keys() - used)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    report = [f"used: {len(used)} entries, {count:,} parameters"]
    report += [f"not used: {n} entries of {root}.*" for root, n in sorted(left.items())]
    return Converted(config, params, report)


def read_original(checkpoint: str, config: str, *, raw: bool) -> Converted:
    """A checkpoint of the original program and its YAML."""
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
    reader, options = lookup(ORIGINAL, target, f"{config}: model.target")
    found = reader(params, torch_file.read(checkpoint), raw=raw, **options)
    scale = params.get("scale_factor")
    if type(scale) in (int, float) and scale > 0:
        found.config["latent_scale"] = float(scale)
    return found._replace(config=found.config | {"converted_from": target})


def read_diffusers(folder: str) -> Converted:
    """A model directory that `save_pretrained` wrote."""
    path = Path(folder).expanduser()
    if (path / "model_index.json").is_file():
        inner = [p.name for p in path.iterdir() if (p / DIFFUSERS_CONFIG).is_file()]
        raise UserError(
            f"{path} is a whole pipeline; give one of its models: "
            + ", ".join(str(path / name) for name in sorted(inner))
        )
    config = weights.read_config(path)
    if not isinstance(config, dict):
        raise UserError(f"{path / DIFFUSERS_CONFIG} should be a table of values")
    reader = lookup(DIFFUSERS, config.get("_class_name"), f"{path}: _class_name")
    files = [path / f"{DIFFUSERS_WEIGHTS}{ending}" for ending in ENDINGS]
    present = [file for file in files if file.is_file()]
    if not present:
        raise UserError(f"{path} has none of {', '.join(f.name for f in files)}")
    found = reader(config, torch_file.read(present[0]))
    source = f"diffusers.{config['_class_name']}"
    return found._replace(config=found.config | {"converted_from": source})


def lookup(table: Mapping, key: object, where: str):
    """table[key], or UserError with the valid keys; the key comes from a file."""
    if not isinstance(key, str) or key not in table:
        shown = repr(key) if isinstance(key, str | None) else type(key).__name__
        raise UserError(
            f"{where} = {shown} is not supported; valid: {', '.join(table)}"
        )
    return table[key]


def write_whole(out: str, fill: Callable[[Path], None]) -> None:
    """`fill` a directory beside `out`, then give it that name.

    Raises UserError when `out` holds something already.
    """
    path = Path(out).expanduser().absolute()
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        fill(partial)
        if path.is_dir():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(path: Path) -> None:
    """UserError unless a directory can be written at `path`."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists already: give a new directory")


def write_ours(found: Converted, out: str, *, half: bool) -> None:
    """A weights directory. UserError for numbers that its precision cannot hold."""
    limit = float(np.finfo(np.float16 if half else np.float32).max)
    for path, leaf in jax.tree.leaves_with_path(found.params):
        if not np.all(np.abs(leaf) <= limit):
            raise UserError(
                f"{jax.tree_util.keystr(path)} holds numbers that are not finite"
                + (" in f16; leave out --half" if half else "")
            )
    write_whole(out, lambda p: weights.save(p, found.config, found.params, half=half))


def write_diffusers(model: str, out: str) -> list[str]:
    """A first stage of ours as diffusers' model directory; the report's lines."""
    config, params = build.load_trained(model)
    if config.get("stage") != "autoencoder":
        raise UserError(f"{model} is not a first stage: only these can be written")
    section, scale = config.autoencoder.to_dict(), config.get("latent_scale", 0.0)
    size = config.get("data", {}).get("size_px", DEFAULT_SIZE_PX)
    plain = architectures.to_diffusers_first_stage(section, scale=scale, size_px=size)
    table = names.diffusers_autoencoder_names(build.autoencoder(section))
    state_dict = convert.to_original(params, table)

    def fill(path: Path) -> None:
        file = path / f"{DIFFUSERS_WEIGHTS}.safetensors"
        weights.write_tensors(file, state_dict, {"format": "pt"})
        text = json.dumps(plain, indent=2, sort_keys=True) + "\n"
        (path / DIFFUSERS_CONFIG).write_text(text)

    write_whole(out, fill)
    lines = [f"wrote {out}: {plain['_class_name']}, {len(state_dict)} entries"]
    if not scale:
        lines.append("the latent scale is not known here: scaling_factor is set to 1")
    return lines


def describe(config: Mapping) -> str:
    """One line about a converted first stage."""
    network = build.autoencoder(config["autoencoder"])
    kind = "KL" if network.is_kl else f"VQ, {network.num_codes} codes"
    scale = config.get("latent_scale") or "not known (a second stage will measure it)"
    return (
        f"first stage: {kind}, f = {network.factor}, {network.latent_channels} latent "
        f"channels; latent scale: {scale}"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        prog="python -m lDM_jax.tools.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--checkpoint", help="file of the original program")
    main.add_argument("--config", help="its YAML")
    way = dict(nargs=2, metavar=("PROGRAM", "DIR"))
    main.add_argument("--from", dest="source", **way, help="read: diffusers DIR")
    main.add_argument("--to", dest="target", **way, help="write: diffusers DIR")
    main.add_argument("--model", help="ours: shipped name, work or weights directory")
    main.add_argument("--out", help="directory to write")
    main.add_argument("--half", action="store_true", help="store f16")
    main.add_argument(
        "--raw", action="store_true", help="take the trained weights, not their EMA"
    )
    main.add_argument("--scale", type=float, help="latent scale, where you know it")
    return main


def run(args: argparse.Namespace) -> list[str]:
    """Do what the flags say; the lines to print."""
    for way in (args.source, args.target):
        if way and way[0] != "diffusers":
            raise UserError(f"program {way[0]!r} is unknown; valid: diffusers")
    if [args.checkpoint, args.source, args.target].count(None) != 2:
        raise UserError("give exactly one of --checkpoint, --from and --to")
    if args.target:
        if not args.model:
            raise UserError("--to needs --model")
        check_free(Path(args.target[1]).expanduser().absolute())
        return write_diffusers(args.model, args.target[1])
    if not args.out:
        raise UserError("give --out, the directory to write")
    if args.checkpoint and not args.config:
        raise UserError("--checkpoint needs --config, the YAML of the model")
    if args.scale is not None and not 0 < args.scale < float("inf"):
        raise UserError(f"--scale={args.scale} should be a positive number")
    check_free(Path(args.out).expanduser().absolute())
    if args.source:
        found = read_diffusers(args.source[1])
    else:
        found = read_original(args.checkpoint, args.config, raw=args.raw)
    if args.scale:
        found.config["latent_scale"] = args.scale
    write_ours(found, args.out, half=args.half)
    return [*found.report, describe(found.config), f"wrote {args.out}"]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        lines = run(args)
    except (UserError, OSError) as error:
        sys.stderr.write(f"convert: error: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
