"""Images a second of the loader, of a plain PIL loop and of PyTorch's DataLoader.

    python -m benchmarks.loader [--images 400] [--repeats 3]

All read the same JPEG files (500 x 375, quality 90, of smoothed noise over gradients:
as large as ImageNet's), cut the central square, resize it to 256 px by PIL's bicubic
filter and hand over batches of 32 as f32 in [-1, 1]. The plain loop is one process. The
loader works with threads (its default) and with two processes, the DataLoader with two
processes; starting is not counted, nor are the batches prefetched meanwhile. No image
is decoded at a reduced size: what comes out is what the transform promises, and it is
compared. Every repeat measures all of them, in turn; the best of each is reported, as
JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lDM_jax.data.crop import Crop
from lDM_jax.data.folder import FolderSource
from lDM_jax.data.pipeline import loader
from lDM_jax.data.transforms import Composite, Keep, compose

BATCH, SIZE, WORKERS = 32, 256, 2
SKIPPED = 8  # batches: more than any of them prefetches


def write_files(folder: Path, count: int) -> list[Path]:
    """JPEG files in a sub-folder per split, so that all are training files."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir()
    (folder / "test").mkdir()
    y, x = np.mgrid[:375, :500].astype(np.float32)
    paths = []
    for index in range(count):
        coarse = rng.integers(0, 256, (47, 63, 3)).astype(np.uint8)
        noise = np.asarray(Image.fromarray(coarse).resize((500, 375)), np.float32)
        slope = (
            60 * np.sin(x / 90 + index)[:, :, None] + 60 * np.cos(y / 70)[:, :, None]
        )
        fine = rng.normal(0, 8, (375, 500, 3))
        pixels = (0.5 * noise + slope + fine + 64).clip(0, 255).astype(np.uint8)
        paths.append(folder / "train" / f"{index:05d}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    Image.fromarray(pixels).save(folder / "test" / "x.jpg")
    return paths


def read_plainly(path: Path) -> np.ndarray:
    """One file as the original's loaders read it: f32 [-1, 1] "256 256 3"."""
    picture = Image.open(path).convert("RGB")
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return (np.array(picture) / 127.5 - 1.0).astype(np.float32)


def plain(paths: list[Path], workers: int) -> Iterator[np.ndarray]:
    """A loop over the files, again and again."""
    del workers
    while True:
        for start in range(0, len(paths) - BATCH + 1, BATCH):
            yield np.stack(
                [read_plainly(path) for path in paths[start : start + BATCH]]
            )


class Files:
    """A map-style data set for PyTorch."""

    def __init__(self, paths: list[Path]):
        self.paths = paths * 1000

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_plainly(self.paths[index])


def torch_loader(paths: list[Path], workers: int) -> Iterator[np.ndarray]:
    """PyTorch's DataLoader over the same function."""
    import torch

    torch.set_num_threads(1)
    batches = torch.utils.data.DataLoader(
        Files(paths), batch_size=BATCH, num_workers=workers, drop_last=True
    )
    for batch in batches:
        yield batch.numpy()


def threads(paths: list[Path], workers: int) -> Iterator[np.ndarray]:
    """The package's loader without worker processes."""
    del workers
    return ours(paths, 0)


def ours(paths: list[Path], workers: int) -> Iterator[np.ndarray]:
    """The package's loader, in the order of the files to be comparable."""
    source = FolderSource(paths[0].parent.parent)
    row = compose(Crop(SIZE), Composite(), Keep(("image",)))
    batches = loader(
        source, row, batch_size=BATCH, seed=0, shuffle=False, num_workers=workers
    )
    try:
        for batch in batches:
            yield batch["image"]
    finally:
        batches.close()


def rate(make: Callable, paths: list[Path], workers: int, batches: int) -> float:
    """Images a second of `batches` batches after the first SKIPPED."""
    iterator = make(paths, workers)
    for _ in range(SKIPPED):
        next(iterator)
    started = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    taken = time.perf_counter() - started
    iterator.close()
    return batches * BATCH / taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batches", type=int, default=40, help="counted in a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    makers = {"plain loop": plain, "DataLoader": torch_loader}
    makers |= {"loader, threads": threads, "loader, processes": ours}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder), args.images)
        first = {name: next(make(paths, 0)) for name, make in makers.items()}
        for name, batch in first.items():
            if np.abs(batch - first["plain loop"]).max() > 1e-6:
                raise SystemExit(f"{name} does not give the same images")
        best = dict.fromkeys(makers, 0.0)
        for _ in range(args.repeats):
            for name, make in makers.items():
                found = rate(make, paths, WORKERS, args.batches)
                best[name] = max(best[name], found)
    figures = {f"{name} img/s": round(value, 1) for name, value in best.items()}
    sys.stdout.write(json.dumps({**vars(args), **figures}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
