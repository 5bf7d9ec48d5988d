"""Figures of samples while training: what `evaluate generate` says, of the EMA weights.

With config.train.fd_every_steps the loop asks `judge_of`'s function every so many steps
for the Frechet distance of config.train.fd_images samples, always of the same seeds and
captions, to the training pictures. Samples are drawn by `bulk` with config.sample's
settings on all devices; the features of the training pictures are made once and kept in
WORKDIR/tracking. Few samples make the distance too large, and equally so at each step:
it is for comparing steps, not for papers.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from lDM_jax.core.distributed import is_first, whole
from lDM_jax.core.errors import UserError
from lDM_jax.evaluation import options
from lDM_jax.evaluation.commands import generate
from lDM_jax.from_config import datasets, networks
from lDM_jax.from_config.task_settings import task_of
from lDM_jax.sampling.pipeline import Pipeline

FOLDER = "tracking"


def judge_of(experiment: Any, workdir: str | Path) -> Callable | None:
    """(EMA, step) -> {"fd_...": value}; None where the config asks for none.

    UserError for a task that does not draw from noise alone, and where the extractor's
    weights are not at hand: before the first step.
    """
    config, train = experiment.config, experiment.config.train
    if not train.get("fd_every_steps"):  # of second stages only
        return None
    if not task_of(config).draws_from:
        raise UserError(
            f"config.train.fd_every_steps = {train.fd_every_steps}: the task "
            f"{config.task!r} draws from given pictures or layouts; valid: 0"
        )
    own = "emoji" if config.data.source in datasets.EMBEDDED else options.INCEPTION
    parser = argparse.ArgumentParser()
    generate.sampling_arguments(parser)
    args = parser.parse_args(
        ["--extractor", train.fd_extractor or own, "--figures", "frechet"]
    )
    work = Path(workdir) / FOLDER
    args.num, args.work, args.bootstrap = train.fd_images, str(work), 0
    args.batch = 16 * jax.local_device_count()
    extractors = options.extractors(args)
    codec, _ = networks.first_stage(config)
    model = networks.model(config, codec)
    pipes: list[Pipeline] = []

    def judge(ema: Any, step: int) -> dict[str, float]:
        params = jax.tree.map(whole, ema)
        if not pipes:  # so that the trajectory compiles once
            pipes.append(Pipeline(config, model, params, experiment.frozen))
        pipes[0].trained.params = params
        out, name = work / f"step_{step}", str(workdir)
        result = generate.drawn_and_measured(args, pipes[0], name, out, extractors)
        pipes[0].trained.params = {}  # the devices' memory is for training
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("tracking")
        if is_first():
            shutil.rmtree(out)
        return {  # without the intervals
            name: float(value)
            for name, value in result.items()
            if name.split("_")[0] in ("fid", "fd") and not name.endswith("_95")
        }

    return judge
