"""evaluate generate: draw many pictures from a model and measure them.

Pictures are drawn by `bulk` (sharded, resumable) into --out/samples.npz: with classes
each class equally often, with texts the captions of the data in turn, each seed once.
Features of every extractor are made in one pass, all figures of these; one JSON line
goes to --out/metrics.jsonl. The same command continues after a kill, to the same line.
"""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from lDM_jax.core.distributed import from_first, is_first, together
from lDM_jax.core.errors import UserError
from lDM_jax.data import sources
from lDM_jax.evaluation import figures, options
from lDM_jax.evaluation.commands.compare import compare_sides
from lDM_jax.evaluation.extractors import Extractor
from lDM_jax.evaluation.features import write
from lDM_jax.evaluation.image_sets import Batch, Data
from lDM_jax.evaluation.metrics import bootstrap
from lDM_jax.evaluation.sides import Side
from lDM_jax.from_config import datasets
from lDM_jax.sampling import bulk
from lDM_jax.sampling.pipeline import Pipeline
from lDM_jax.sampling.request import Request
from lDM_jax.weights import directory as weights_directory
from lDM_jax.weights.checkpoint import FOLDER, finished_steps


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="shipped name or directory")
    model.add_argument("--workdir", help="a run's directory")
    parser.add_argument("--num", type=int, default=50_000, help="pictures to draw")
    parser.add_argument("--out", required=True, help="folder of samples and figures")
    sampling_arguments(parser)


def sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of how to draw and what to compare with."""
    parser.add_argument("--reference", help="npz or folder; else the model's own data")
    parser.add_argument(
        "--split",
        choices=sources.SPLITS,
        default="train",
        help="of the model's own data, for the reference and the captions",
    )
    parser.add_argument("--first_seed", type=int, default=0)
    options.add_sampling(parser)
    parser.add_argument("--batch", type=int, default=32, help="over a host's devices")
    options.add_extractors(parser, default=options.INCEPTION)
    options.add_measuring(parser)


def run(args: argparse.Namespace) -> dict:
    """Draw pictures from a model and measure them against its data."""
    out, name = Path(args.out).expanduser(), args.workdir or args.model
    extractors = options.extractors(args)  # before the costly part
    return drawn_and_measured(args, Pipeline.load(name), name, out, extractors)


def drawn_and_measured(
    args: argparse.Namespace,
    pipe: Pipeline,
    name: str,
    out: Path,
    extractors: list[Extractor],
) -> dict:
    """The line of one setting, appended to metrics.jsonl in `out` if it is new."""
    if args.num < 2:
        raise UserError(f"--num={args.num}: give at least 2")
    out.mkdir(parents=True, exist_ok=True)
    request, prompts = request_of(args, pipe)
    identity = {
        "model": str(name),
        "num": args.num,
        "weights_sha256": tree_digest(pipe.params),
        **{k: v for k, v in request.record().items() if k != "prompt"},
        "seeds": [args.first_seed, args.first_seed + args.num - 1],
        "captions": len(prompts),
    }
    check_identity(out, identity)
    samples = out / "samples.npz"
    if not from_first(samples.exists()):
        with options.progress("drawing") as report:
            for count in bulk.generate(
                pipe, request, args.num, samples, batch_size=args.batch, prompts=prompts
            ):
                report(count)
    result = {"metric": "generate", **identity, **provenance(pipe, name)}
    work = Path(args.work).expanduser() if args.work else out
    for extractor in extractors:
        mine = options.side(Batch(samples), extractor, out / "features", "samples")
        theirs = args.reference or Data(pipe.config, args.split)
        reference = options.side(theirs, extractor, work / "features", "reference")
        result |= compare_sides(args, mine, reference, extractor)
        if prompts and extractor.embed_texts is not None:
            result |= clip_score(args, mine, extractor, prompts)
        result["reference"] = reference.name
    with together("writing the figures"):
        file, text = out / "metrics.jsonl", json.dumps(result)
        known = file.read_text().splitlines() if file.is_file() else []
        if is_first() and text not in known:
            with file.open("a") as stream:
                stream.write(text + "\n")
    return result


def request_of(args: argparse.Namespace, pipe: Pipeline) -> tuple[Request, list[str]]:
    """What to draw, and the captions of the data in the order they are taken.

    The captions are those of the split in a fixed random order, from the beginning
    again where more pictures are asked for.
    """
    prompts: list[str] = []
    draws_from = pipe.task.draws_from
    if draws_from == "captions":
        source = datasets.source(pipe.config, args.split)
        order = np.random.default_rng(0).permutation(len(source))
        prompts = [str(source[int(i)]["caption"]) for i in order[: args.num]]
    elif not draws_from:
        raise UserError(
            f"the task {pipe.task.name!r} draws from given pictures or layouts: its "
            "figures are another command's"
        )
    request = pipe.resolve(
        Request(
            prompt=prompts[0] if prompts else None,
            label=0 if draws_from == "classes" else None,
            seeds=(args.first_seed,),
            **options.sampling(args),
        )
    )
    return dataclasses.replace(request, label=None), prompts


def check_identity(out: Path, identity: dict) -> None:
    """UserError if the folder has samples of another request."""
    file = out / "request.json"
    text = json.dumps(identity, sort_keys=True)
    with together("reading the folder of samples"):
        if file.is_file() and file.read_text() != text:
            raise UserError(f"{out} holds samples of another request: give a new --out")
        if is_first():
            write(file, lambda stream: stream.write(text.encode()))


def clip_score(
    args: argparse.Namespace, samples: Side, extractor: Extractor, prompts: list[str]
) -> dict:
    """100 max(cos(picture, its caption), 0), the mean over pictures, as JSON.

    The paper's own factor is 2.5 (Hessel et al. 2021); 100 is what is quoted.
    """
    texts, bank = extractor.embed_texts(prompts), samples.bank
    pictures = np.concatenate(list(bank.blocks()))
    theirs = texts[np.arange(bank.count) % len(texts)]
    cosines = (pictures * theirs).sum(axis=1, dtype=np.float64)
    counts = bootstrap.counts(bank.count, args.bootstrap)
    figure = bootstrap.mean_figure(100 * np.maximum(cosines, 0), counts)
    return figures.Report({"clip_score": figure}).as_json()


def provenance(pipe: Pipeline, name: str) -> dict:
    """config hash, step and EMA profile of a model."""
    text = json.dumps(json.loads(pipe.config.to_json()), sort_keys=True)
    train = pipe.config.get("train", {})
    steps = finished_steps(Path(name) / FOLDER) if Path(name).is_dir() else []
    if weights_directory.is_weights_directory(weights_directory.resolve(name)):
        steps = []
    return {
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "step": max(steps, default=train.get("num_steps")),
        "ema": {key: train[key] for key in ("ema_decay", "ema_std") if key in train},
    }


def tree_digest(params: dict) -> str:
    """SHA-256 over all parameters in the order of their paths."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
