"""How fast and in how much memory a folder is evaluated, beside pytorch-fid.

    python -m benchmarks.fid make --folder DIR --num 50000 --size 32
    python -m benchmarks.fid memory --folder DIR
    python -m benchmarks.fid memory --folder DIR --wide
    python -m benchmarks.fid speed --num 64 --peer

make    writes a folder of small noisy PNGs
memory  all figures of that folder against itself with the emoji features: seconds,
        images a second, and the largest resident memory of the process; --wide: with
        as many features as InceptionV3 has, made by one random projection, against
        10,000 of the images, as a reference file holds them
speed   from a folder of PNGs to mean and covariance of InceptionV3's features, random
        weights, which cost the same; --peer: by pytorch-fid on the same files and
        weights, in its batches of 50 (it reads in the same process: forks of one that
        runs JAX may hang)
agree   FID of two folders by `evaluate compare` and by pytorch-fid, the same weights

Each prints one JSON line. Run them one at a time on a quiet machine.
"""

import argparse
import contextlib
import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from lDM_jax.core import image
from lDM_jax.evaluation import extractors, figures, sides
from lDM_jax.evaluation.image_sets import Folder
from lDM_jax.models import inception
from lDM_jax.tools import evaluate
from lDM_jax.weights import name_maps, torch_file


def make(args: argparse.Namespace) -> dict:
    """A folder of images: smooth colors with noise, every one different.

    seed: 0, or 1 for darker ones.
    """
    folder, rng = Path(args.folder), np.random.default_rng(args.seed)
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 1, args.size)[:, None, None]
    for index in range(args.num):
        ends = rng.integers(0, 200 - 90 * args.seed, (2, 1, 1, 3))
        pixels = ends[0] * ramp + ends[1] * (1 - ramp)
        pixels = pixels + rng.integers(0, 56, (args.size, args.size, 3))
        subfolder = folder / f"{index // 1000:03d}" if args.num > 1000 else folder
        subfolder.mkdir(exist_ok=True)
        image.write_png(subfolder / f"{index:06d}.png", pixels.astype(np.uint8))
    return {"folder": str(folder), "num": args.num, "size_px": args.size}


def memory(args: argparse.Namespace) -> dict:
    """Every figure of a folder, with the peak of resident memory."""
    extractor, begin = wide() if args.wide else extractors.load_emoji(), time.time()
    folder = Path(args.folder)
    work = folder.with_name(f"{folder.name}.{extractor.name}")
    side = sides.open_side(folder, extractor, work)
    features_done, reference = time.time(), side
    if args.wide:
        file = work.with_suffix(".npz")
        if not file.exists():
            sides.save(file, side, Folder(folder))
        reference = sides.open_side(file, extractor, work)
    figures_begin = time.time()
    report = figures.measure(side, reference, extractor, replicates=args.bootstrap)
    return {
        "num": side.bank.count,
        "features": len(side.pool.mean),
        "reference": reference.bank.count,
        "features_secs": round(features_done - begin, 1),
        "images_per_sec": round(side.bank.count / (features_done - begin), 1),
        "figures_secs": round(time.time() - figures_begin, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **report.as_json(),
    }


def wide() -> extractors.Extractor:
    """As many features as InceptionV3 gives, by a random projection of 16 x 16 px."""
    rng, size = np.random.default_rng(0), 16
    shapes = jax.eval_shape(
        inception.Inception().init_with_output,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, inception.SIZE_PX, inception.SIZE_PX, 3), np.float32),
    )[0]
    tree = {
        name: rng.normal(0, 1 / size, (3 * size**2, shape.shape[1])).astype(np.float32)
        for name, shape in shapes.items()
    }

    def apply(variables: dict, x: jax.Array) -> dict[str, jax.Array]:
        flat = x.reshape(len(x), -1) / 255.0
        return {name: abs(flat @ kernel) for name, kernel in variables.items()}

    return extractors.Extractor("wide", "clean", size, "", 64, "wide", tree, apply)


def speed(args: argparse.Namespace) -> dict:
    """Images a second through InceptionV3, compiled before the clock starts."""
    with tempfile.TemporaryDirectory() as folder_name:
        root = Path(folder_name)
        make(argparse.Namespace(**vars(args) | dict(folder=root / "png")))
        store(root / "inception.safetensors")
        extractor = extractors.load_extractor(
            "inception-pytorch", str(root / "inception.safetensors")
        )
        extractor.features(Folder(root / "png").read(range(extractor.batch_images)))
        begin = time.time()
        ours = sides.open_side(root / "png", extractor, root / "features")
        secs = time.time() - begin
        result = {
            "num": args.num,
            "size_px": args.size,
            "images_per_sec": round(args.num / secs, 2),
        }
        if args.peer:
            mean, secs = peer_speed(root)
            result["peer_images_per_sec"] = round(args.num / secs, 2)
            scale = np.abs(mean).max()
            result["difference"] = float(np.abs(ours.pool.mean - mean).max() / scale)
    return result | {"devices": jax.device_count()}


def store(path: Path) -> None:
    """InceptionV3 by He's scale, in torch's names and layouts."""
    rng, arrays = np.random.default_rng(0), {}
    for parameter, shape in inception.inception_shapes().items():
        deviation = np.sqrt(2 / max(1, np.prod(shape[:-1])))
        values = rng.normal(0, deviation, shape) if len(shape) > 1 else np.ones(shape)
        layout = "same"
        if parameter[-1] == "kernel":
            layout = "conv" if len(shape) == 4 else "linear"
        name = ".".join([*parameter[:-1], parameter[-1].replace("kernel", "weight")])
        array = name_maps.to_layout(values.astype(np.float32), layout)
        arrays[name] = np.ascontiguousarray(array)
    arrays["fc.bias"] = np.zeros(inception.CLASSES, np.float32)
    save_file(arrays, path)


def agree(args: argparse.Namespace) -> dict:
    """One FID by both programs, from files to the figure."""
    with tempfile.TemporaryDirectory() as folder_name:
        root, network = Path(folder_name), Path(folder_name) / "inception.safetensors"
        folders = [root / "a", root / "b"]
        for index, folder in enumerate(folders):
            make(argparse.Namespace(**vars(args) | dict(folder=folder, seed=index)))
        store(network)
        text = "--extractor=inception-pytorch --figures=frechet --bootstrap=0"
        flags = [*text.split(), f"--weights=inception-pytorch={network}"]
        with contextlib.redirect_stdout(io.StringIO()) as line:
            evaluate.main(["compare", *map(str, folders), *flags])
        ours = json.loads(line.getvalue())["fid_pytorch"]
        program, _ = peer(network)
        options = dict(batch_size=50, device="cpu", dims=2048, num_workers=0)
        theirs = float(
            program.calculate_fid_given_paths([*map(str, folders)], **options)
        )
    difference = abs(ours / theirs - 1)
    return {"num": args.num, "fid": ours, "peer_fid": theirs, "relative": difference}


def peer(file: Path):
    """(pytorch-fid's program, what makes its network) with the weights of a file."""
    import torch

    from tests import peers

    peers.torchvision()
    networks = peers.peer("pytorch_fid.inception")
    stored = torch_file.read(file)
    state = {name: torch.from_numpy(np.array(stored[name])) for name in stored}
    networks.load_state_dict_from_url = lambda *args, **kwargs: state
    return peers.peer("pytorch_fid.fid_score"), networks.InceptionV3


def peer_speed(root: Path) -> tuple[np.ndarray, float]:
    """(mean of the features, seconds) of pytorch-fid's own program."""
    program, kind = peer(root / "inception.safetensors")
    network = kind([3])
    options = dict(batch_size=50, device="cpu", num_workers=0)
    files = sorted((root / "png").rglob("*.png"))
    program.get_activations(files[:2], network, **options)
    begin = time.time()
    mean, _ = program.calculate_activation_statistics(files, network, **options)
    return mean, time.time() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for function in (make, memory, speed, agree):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(run=function)
        if function in (make, memory):
            command.add_argument("--folder", required=True)
        command.add_argument("--num", type=int, default=64)
        command.add_argument("--size", type=int, default=32 if function is make else 64)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--bootstrap", type=int, default=20)
        command.add_argument("--peer", action="store_true")
        command.add_argument("--wide", action="store_true")
    args = parser.parse_args()
    sys.stdout.write(json.dumps(args.run(args)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
