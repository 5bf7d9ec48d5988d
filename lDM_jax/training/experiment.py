"""A config -> what the loop trains: data, stage, frozen networks.

Owns the order in which these are made, and the latent scale that is measured where
nobody knows it. Data sets come from `datasets`, latents that are encoded before
training from `encode_latents`, stages from `build`.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from lDM_jax.core.distributed import from_first
from lDM_jax.core.errors import UserError
from lDM_jax.data import pipeline as data_pipeline
from lDM_jax.data import sources
from lDM_jax.data.bad_examples import Ledger
from lDM_jax.data.latents_cache import Pick, read_plan
from lDM_jax.diffusion import codec as codec_lib
from lDM_jax.diffusion.codec import Codec
from lDM_jax.from_config import datasets, encode_latents, networks
from lDM_jax.from_config.datasets import source, transform
from lDM_jax.training import build
from lDM_jax.training.state import Stage
from lDM_jax.weights import directory as weights_directory
from lDM_jax.weights.lpips import load_lpips

log = logging.getLogger(__name__)

SCALE_SAMPLE_IMAGES = 512


@dataclasses.dataclass
class Experiment:
    """Everything the loop needs for one config.

    initial: parameters to begin with instead of random ones, by path
    (config.init_from). judge: (EMA, step) -> figures of samples, or None.
    """

    config: ConfigDict
    stage: Stage
    frozen: Any
    iterator: Any
    eval_batches: Callable[[], Any]
    initial: dict = dataclasses.field(default_factory=dict)
    judge: Callable | None = None


class Rows(NamedTuple):
    """Training and held-out examples, and the transform of each to batch rows.

    ledger: of the training examples that cannot be used.
    """

    data: Any
    row: Callable
    held_out: Any
    held_out_row: Callable
    ledger: Ledger | None = None


def make(config: ConfigDict, *, workdir: str | Path | None = None) -> Experiment:
    """Data, networks and stage of a config: what train.py hands to the loop.

    Fills in what the config leaves to its data: see `datasets.resolve`, the names of
    classes, config.first_stage.scale when it has to be measured. workdir: where
    examples that cannot be used are listed.
    """
    if config.train.batch_size < 1:
        raise UserError(f"config.train.batch_size = {config.train.batch_size} < 1")
    kinds = dict.fromkeys(build.SECOND_STAGES, _second_stage)
    kinds["autoencoder"] = _autoencoder
    kind = networks.lookup(kinds, config.stage, "config.stage")
    return kind(datasets.resolve(config), workdir)


def _autoencoder(config: ConfigDict, workdir) -> Experiment:
    stage = build.autoencoder_stage(config)
    if config.data.source == "latents":
        raise UserError("a first stage trains on pictures, not on latents")
    rows = pictures(config, workdir)  # before anything is downloaded
    frozen = {}
    if stage.objective.perceptual is not None:
        frozen["lpips"] = load_lpips(config.loss.lpips_weights)
    return _with_data(config, stage, frozen, rows)


def _second_stage(config: ConfigDict, workdir) -> Experiment:
    codec, codec_params = networks.first_stage(config)
    frozen = networks.frozen(config, codec_params)
    make = build.SECOND_STAGES[config.stage]
    stage = make(config, codec)  # its errors before everything is encoded
    if config.data.source == "latents":
        rows = from_cache(config, frozen)
    elif config.data.cache_latents:
        rows = in_memory(config, codec, codec_params, workdir)
    else:
        rows = pictures(config, workdir)
    if needs_scale(config):
        moments = first_moments(codec, codec_params, rows)
        stage = make(config, measure_scale(config, codec, moments))
    return _with_data(config, stage, frozen, rows)


def splits(config: ConfigDict) -> tuple[Any, Any]:
    """Training and held-out data; tells of them, notes the classes in the config."""
    data, held_out = (source(config, split) for split in ("train", "validation"))
    datasets.note_classes(config, data)
    for line in datasets.describe(config, data, held_out):
        log.info("%s", line)
    return data, held_out


def pictures(config: ConfigDict, workdir: str | Path | None = None) -> Rows:
    """The data set itself; what cannot be used is listed in workdir."""
    data, held_out = splits(config)
    row, held_out_row = (transform(config, split) for split in ("train", "validation"))
    listed = datasets.ledger(config, data, workdir, jax.process_index())
    return Rows(data, row, held_out, held_out_row, listed)


def in_memory(config: ConfigDict, codec: Codec, params, workdir=None) -> Rows:
    """The whole data set encoded now, held in memory.

    What is random in the transform is sampled config.data.cache_draws times.
    """
    encode_latents.check_task(config)
    encoded, draws = [], encode_latents.draws_of(config)
    both = splits(config)
    encode_latents.warn_of_frozen(config, both[0], draws)
    for split, data in zip(("train", "validation"), both, strict=True):
        row = encode_latents.copies(config, draws=draws, split=split)
        where = workdir if split == "train" else None
        listed = datasets.ledger(config, data, where, jax.process_index())
        rows = encode_latents.encode(
            codec, params, data, row, ledger=listed, name=split
        )
        encoded.append(sources.ArraySource(rows))
    train_row, held_out_row = encode_latents.pick(config, draws=draws)
    return Rows(encoded[0], train_row, encoded[1], held_out_row)


def from_cache(config: ConfigDict, frozen: dict) -> Rows:
    """What tools/encode_latents has encoded; UserError if it does not fit."""
    plan = read_plan(config.data.path)
    encode_latents.check_cache(config, frozen, plan)
    data, held_out = splits(config)
    rows = encode_latents.pick(config, draws=plan.draws, mirrored=plan.mirrored)
    return Rows(data, rows[0], held_out, rows[1])


def first_moments(codec: Codec, params, rows: Rows) -> np.ndarray:
    """Moments of the first SCALE_SAMPLE_IMAGES training examples."""
    if not isinstance(rows.row, Pick):
        options = dict(limit=SCALE_SAMPLE_IMAGES, ledger=rows.ledger)
        return encode_latents.encode(codec, params, rows.data, rows.row, **options)[
            "moments"
        ]
    first = sources.First(rows.data, SCALE_SAMPLE_IMAGES)
    batches = data_pipeline.batches_once(first, rows.held_out_row, batch_size=32)
    return np.concatenate([b["moments"][b["weight"] > 0] for b in batches])


def needs_scale(config: ConfigDict) -> bool:
    """True if neither the config nor the first stage knows the latent scale."""
    if config.first_stage.scale or config.first_stage.path == "identity":
        return False
    return not networks.stored_first_stage(config).get("latent_scale", 0.0)


def measure_scale(config: ConfigDict, codec: Codec, moments: np.ndarray) -> Codec:
    """Codec with 1 / std of the latents of the first images; noted in the config."""
    sample = moments[:SCALE_SAMPLE_IMAGES]
    scale = codec_lib.latent_scale(codec, sample, jax.random.key(0))
    scale = from_first(scale)  # one number on every host, whatever their chips
    config.first_stage.scale = scale
    log.info("latent scale %.6g (1 / std of the training latents)", scale)
    return dataclasses.replace(codec, scale=scale)


def _with_data(config, stage, frozen, rows: Rows) -> Experiment:
    size, data = config.train.batch_size, rows.data
    shards = jax.process_count()
    iterator = data_pipeline.loader(
        data,
        rows.row,
        batch_size=size // shards,
        seed=config.seed,
        shard_index=jax.process_index(),
        shard_count=shards,
        num_workers=config.data.num_workers,
        ledger=rows.ledger,
    )

    def eval_batches():
        return data_pipeline.batches_once(
            rows.held_out, rows.held_out_row, batch_size=min(size, 32)
        )

    initial = initial_params(config, stage)
    return Experiment(config, stage, frozen, iterator, eval_batches, initial)


def initial_params(config: ConfigDict, stage: Stage) -> dict:
    """The parameters of config.init_from by path: those of a trained model.

    only: the beginnings of paths to take, such as ("unet",); empty takes everything.
    UserError with three lists unless these cover the network, or its named part,
    exactly, and for a name that is in neither.
    """
    section = config.init_from
    if not section.path:
        return {}
    _, params = networks.load_trained(section.path)
    abstract = jax.eval_shape(stage.init, jax.random.key(0)).params
    expected, stored = (flatten_dict(tree, sep="/") for tree in (abstract, params))
    for name in section.only:
        if not any(inside(path, (name,)) for path in expected):
            raise UserError(
                f"config.init_from.only: nothing lies below {name!r}; the network has "
                + ", ".join(sorted({path.split("/")[0] for path in expected}))
            )
    if section.only:
        expected, stored = (
            {path: leaf for path, leaf in tree.items() if inside(path, section.only)}
            for tree in (expected, stored)
        )
    weights_directory.check_cover(stored, expected, what=section.path)
    log.info("starting from %s: %d of its arrays", section.path, len(stored))
    return stored


def inside(path: str, roots: Sequence[str]) -> bool:
    """True if a path "a/b/c" is one of `roots` or lies below one."""
    return any(path == root or path.startswith(f"{root}/") for root in roots)
