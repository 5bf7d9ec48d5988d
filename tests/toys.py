"""Toys that tests of several rooms share: small models, pictures, files.

`smoke` and `small` are configs of 20 steps on a CPU, `drawn` a pipeline of toy networks
that every test of a worker shares, `saved` its weights directory. Nothing here is
compiled or read on import.
"""

import functools
import importlib
import io
import json
import struct
import zlib

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from ml_collections import ConfigDict
from PIL import Image

from lDM_jax.core import image
from lDM_jax.from_config import datasets, networks, older
from lDM_jax.pipeline import Pipeline
from lDM_jax.weights import directory as weights_directory

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
HOLE = np.zeros((32, 32), np.uint8)
HOLE[8:20, 8:20] = 255


def small(name: str, **changes):
    """The smoke config of that name, changed as by `change`."""
    config = importlib.import_module(f"configs.{name}").get_config("smoke").unlock()
    change(config, **changes)
    return config


def config_of(**sections) -> ConfigDict:
    """A second stage's config of these sections and what they leave unsaid; no network
    unless it is among them."""
    config = older.complete({"stage": "diffusion", **sections})
    return ConfigDict({k: v for k, v in config.items() if k in sections or k != "unet"})


def change(config, **changes) -> None:
    """Set values of a config; a key names its sections, separated by "__"."""
    for key, value in changes.items():
        *sections, field = key.split("__")
        target = config
        for section in sections:
            target = target[section]
        with target.unlocked(), target.ignore_type():
            target[field] = value


def smoke(name: str):
    """The smoke config of that name with every task's process and sampler."""
    config = importlib.import_module(f"configs.{name}").get_config("smoke").unlock()
    config.first_stage.scale = 1.0
    # one process and sampler for all tasks: what is tested here is not theirs
    config.process.kind, config.sample.sampler = "discrete", "ddim"
    return datasets.resolve(config)


@functools.cache
def drawn(name: str) -> Pipeline:
    """`pipeline_of` a smoke config: one a worker, with what it has compiled.

    `with_config` is for other settings.
    """
    return pipeline_of(smoke(name))


def pipeline_of(config: ConfigDict) -> Pipeline:
    """A pipeline of toy networks with random weights, also where zeros begin."""
    codec, first_stage = networks.first_stage(config)
    model = networks.model(config, codec)
    shell = Pipeline(config, model, {}, networks.frozen(config, first_stage))
    shapes = shell.trained.abstract_params
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(
        lambda leaf: 0.2 * draw(leaf.shape).astype(np.float32), shapes
    )
    return Pipeline(config, model, params, shell.frozen)


def with_config(pipe: Pipeline, **changes) -> Pipeline:
    """The same networks under a changed config; as by `change`."""
    config = pipe.config.copy_and_resolve_references()
    change(config, **changes)
    return Pipeline(config, pipe.model, pipe.params, pipe.frozen)


def saved(name: str, path, **changes) -> str:
    """The weights directory of `drawn`, with changes of its config."""
    pipe = with_config(drawn(name), **changes)
    weights_directory.save(
        path / name, pipe.config.to_dict(), jax.device_get(pipe.params)
    )
    return str(path / name)


def difference(a, b) -> int:
    """The largest difference of two pictures, in levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def pictures(seed: int, count: int = 300, size: int = 24) -> np.ndarray:
    """Coloured noise, uint8, every set of its own tint."""
    rng = np.random.default_rng(seed)
    tint = rng.integers(0, 128, 3)
    return (rng.integers(0, 128, (count, size, size, 3)) + tint).astype(np.uint8)


def png(pixels=PICTURE, request=None) -> bytes:
    """A PNG file as `Pipeline` writes it."""
    file = io.BytesIO()
    image.save_png(file, pixels, request=request)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file (W3C PNG, 5.3)."""
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + crc


def png_header(width: int, height: int, *more: bytes) -> bytes:
    """A PNG's head that promises such an extent (11.2.2), and more chunks."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more)


EMPTY = chunk(b"IDAT", zlib.compress(b""))


def write_records(path, pixels, split="train"):
    """An ArrayRecord of one emoji, written from the text of the format alone."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    header = json.dumps(
        dict(caption="disc", codepoints="0", group="g", split=split, subgroup="s")
    ).encode()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(struct.pack("<I", len(header)) + header + png.getvalue())
    writer.close()
    return path
