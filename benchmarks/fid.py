"""How fast and in how much memory a folder is evaluated, beside pytorch-fid.

    python -m benchmarks.fid make --folder DIR --num 50000 --size 32
    python -m benchmarks.fid memory --folder DIR
    python -m benchmarks.fid speed --num 64 --peer

make    writes a folder of small noisy PNGs
memory  all figures of that folder against itself with the emoji features: seconds,
        pictures a second, and the largest resident memory of the process
speed   pictures a second through InceptionV3 (random weights, which cost the same);
        --peer: the same network in torch as pytorch-fid runs it, batches of 50, resize
        by torch, when torch-fidelity's network is installed

Each prints one JSON line. Run them one at a time on a quiet machine.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import jax
import numpy as np

from lDM_jax import image
from lDM_jax.evaluation import extractors, figures, references
from lDM_jax.models import inception


def make(args: argparse.Namespace) -> dict:
    """A folder of pictures: smooth colours with noise, every one different."""
    folder, rng = Path(args.folder), np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 1, args.size)[:, None, None]
    for index in range(args.num):
        ends = rng.integers(0, 200, (2, 1, 1, 3))
        picture = ends[0] * ramp + ends[1] * (1 - ramp)
        picture = picture + rng.integers(0, 56, (args.size, args.size, 3))
        place = folder / f"{index // 1000:03d}"
        place.mkdir(exist_ok=True)
        image.write_png(place / f"{index:06d}.png", picture.astype(np.uint8))
    return {"folder": str(folder), "num": args.num, "size_px": args.size}


def memory(args: argparse.Namespace) -> dict:
    """Every figure of a folder, with the peak of resident memory."""
    extractor, begin = extractors.load_emoji(), time.perf_counter()
    work = Path(args.folder).with_name(Path(args.folder).name + ".features")
    side = references.open_side(args.folder, extractor, work)
    made = time.perf_counter()
    report = figures.measure(side, side, extractor, replicates=args.bootstrap)
    done = time.perf_counter()
    return {
        "num": side.bank.count,
        "features_secs": round(made - begin, 1),
        "images_per_sec": round(side.bank.count / (made - begin), 1),
        "figures_secs": round(done - made, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **report.as_json(),
    }


def speed(args: argparse.Namespace) -> dict:
    """Pictures a second of InceptionV3, compiled before the clock starts."""
    rng = np.random.default_rng(0)
    shapes = inception.inception_shapes()
    tree: dict = {}
    for path, shape in shapes.items():
        place = tree
        for name in path[:-1]:
            place = place.setdefault(name, {})
        spread = np.sqrt(2 / max(1, np.prod(shape[:-1])))
        values = rng.normal(0, spread, shape) if len(shape) > 1 else np.ones(shape)
        place[path[-1]] = values.astype(np.float32)
    network = inception.Inception()
    extractor = extractors.Extractor(
        name="inception",
        resize="legacy",
        size_px=inception.SIZE_PX,
        digest="",
        rows=16,
        label="",
        variables={"params": tree},
        apply=lambda variables, x: network.apply(variables, (x - 128.0) / 128.0),
    )
    x = list(rng.integers(0, 256, (args.num, args.size, args.size, 3), np.uint8))
    extractor.features(x[: extractor.batch_images])
    begin = time.perf_counter()
    extractor.features(x)
    ours = args.num / (time.perf_counter() - begin)
    result = {"num": args.num, "size_px": args.size, "images_per_sec": round(ours, 2)}
    if args.peer:
        result["peer_images_per_sec"] = round(peer_speed(np.stack(x)), 2)
    return result | {"devices": jax.device_count()}


def peer_speed(x: np.ndarray) -> float:
    """The same network in torch, in pytorch-fid's batches of 50."""

    import torch

    from tests import peers

    module = peers.peer("torch_fidelity.feature_extractor_inceptionv3")
    kept, loaded = torch.nn.Module.load_state_dict, torch.load
    torch.nn.Module.load_state_dict = lambda self, *args, **kwargs: None
    torch.load = lambda *args, **kwargs: {}
    try:
        network = module.FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path="none"
        ).eval()
    finally:
        torch.nn.Module.load_state_dict, torch.load = kept, loaded
    batches = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).split(50)
    with torch.no_grad():
        network(batches[0][:2])
        begin = time.perf_counter()
        for batch in batches:
            network(batch)
        return len(x) / (time.perf_counter() - begin)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for function in (make, memory, speed):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(run=function)
        if function is not speed:
            command.add_argument("--folder", required=True)
        command.add_argument("--num", type=int, default=64)
        command.add_argument("--size", type=int, default=32 if function is make else 64)
        command.add_argument("--bootstrap", type=int, default=20)
        command.add_argument("--peer", action="store_true")
    args = parser.parse_args()
    sys.stdout.write(json.dumps(args.run(args)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
