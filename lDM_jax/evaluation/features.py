"""Features of a set of images: computed once, in parts on the disk, read in blocks.

A part is 256 images; it is written whole or not at all, so that a stopped evaluation
continues, and hosts share the parts. All figures are made of the parts afterwards, one
block in memory at a time: no image is dropped, none counts twice. A bank of 50,000
images takes about 1 GB of disk with InceptionV3, 0.13 GB with the emoji network.

`order` is a permutation by content: random subsets are drawn from it, so that a figure
does not depend on how files are named.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from lDM_jax.core.distributed import together
from lDM_jax.core.errors import UserError
from lDM_jax.core.files import replacing
from lDM_jax.evaluation.extractors import Extractor
from lDM_jax.evaluation.image_sets import ImageSet, digest
from lDM_jax.evaluation.metrics.statistics import Gaussian, Moments

PART = 256
BLOCK = 2048


class Bank:
    """Features on the disk; `extract` makes it.

    record: of the extractor and the images, with their count, extents and
    fingerprint (which does not depend on the order).
    """

    def __init__(self, folder: Path, count: int, record: dict):
        self.folder, self.count = folder, count
        infos = [self._info(number) for number in range(-(-count // PART))]
        self.digests = np.array([d for info in infos for d in info["digests"]], "<u8")
        if len(self.digests) != count:
            raise UserError(f"{folder} holds {len(self.digests)} of {count} images")
        sizes = sorted({tuple(size) for info in infos for size in info["sizes"]})
        text = np.sort(self.digests).astype("<u8").tobytes()
        self.record = record | {
            "count": count,
            "sizes_px": [list(size) for size in sizes[:8]],
            "fingerprint": hashlib.sha256(text).hexdigest(),
        }
        self.order = np.argsort(self.digests, kind="stable")

    def _info(self, number: int) -> dict:
        return json.loads((self.folder / f"{number:06d}.json").read_text())

    def has(self, key: str) -> bool:
        """True if there are features of that name."""
        return (self.folder / f"000000.{key}.npy").is_file()

    def duplicates(self) -> int:
        """How many images are exact copies of another one before them."""
        return self.count - len(np.unique(self.digests))

    def blocks(self, key: str = "pool", size: int = BLOCK) -> Iterator[np.ndarray]:
        """f32 "m d" in the order of the images, m = size but for the last."""
        parts: list[np.ndarray] = []
        for number in range(-(-self.count // PART)):
            parts.append(np.load(self.folder / f"{number:06d}.{key}.npy"))
            joined = parts if sum(map(len, parts)) < size else [np.concatenate(parts)]
            while len(joined) == 1 and len(joined[0]) >= size:
                yield joined[0][:size]
                joined = [joined[0][size:]]
            parts = joined
        rest = np.concatenate(parts)
        if len(rest):
            yield rest

    def rows(self, indices: np.ndarray, key: str = "pool") -> np.ndarray:
        """f32 "m d" of the images at these positions of `order`."""
        positions, rows = self.order[indices], None
        for number in np.unique(positions // PART):
            part = np.load(self.folder / f"{number:06d}.{key}.npy", mmap_mode="r")
            mask = positions // PART == number
            if rows is None:
                rows = np.empty((len(positions), part.shape[1]), np.float32)
            rows[mask] = part[positions[mask] % PART]
        return rows

    def to_image_order(self, values: np.ndarray) -> np.ndarray:
        """Values "... n" in `order`, moved to the order of the images."""
        moved = np.empty_like(values)
        moved[..., self.order] = values
        return moved

    def gaussian(
        self, key: str = "pool", weights: np.ndarray | None = None
    ) -> Gaussian:
        """Mean and covariance; weights "n": how often each image counts."""
        moments, start = None, 0
        for block in self.blocks(key):
            moments = moments or Moments.zeros(block.shape[1])
            here = None if weights is None else weights[start : start + len(block)]
            moments.add(block, here)
            start += len(block)
        return moments.gaussian()


class ArrayBank(Bank):
    """A bank of pool features in memory, f32 "n d", such as a reference file's."""

    def __init__(self, features: np.ndarray, record: dict):
        self._features, self.count = np.asarray(features, np.float32), len(features)
        self.record = record
        rows = (hashlib.sha256(row.tobytes()).digest()[:8] for row in self._features)
        self.digests = np.array([int.from_bytes(row, "little") for row in rows], "<u8")
        self.order = np.argsort(self.digests, kind="stable")

    def has(self, key: str) -> bool:
        """True for the pool features."""
        return key == "pool"

    def blocks(self, key: str = "pool", size: int = BLOCK) -> Iterator[np.ndarray]:
        """As `Bank.blocks`."""
        for start in range(0, self.count, size):
            yield self._features[start : start + size]

    def rows(self, indices: np.ndarray, key: str = "pool") -> np.ndarray:
        """As `Bank.rows`."""
        return self._features[self.order[indices]]


def extract(
    images: ImageSet,
    extractor: Extractor,
    folder: str | Path,
    *,
    report: Callable[[int], None] = lambda count: None,
) -> Bank:
    """The bank of a set in `folder`, continued where a stopped run left it.

    report is called with the number of images done. UserError if the folder holds
    features of other images, or of another extractor.
    """
    folder = Path(folder)
    record = {**extractor.record(), **images.record}
    with together("making features"):
        begin(folder, record | {"identity": images.identity, "count": len(images)})
        for number, start in enumerate(range(0, len(images), PART)):
            if number % jax.process_count() != jax.process_index():
                continue
            indices = range(start, min(start + PART, len(images)))
            if not (folder / f"{number:06d}.json").is_file():
                write_part(folder, number, images, extractor, indices)
            report(len(indices))
    return Bank(folder, len(images), record)


def begin(folder: Path, request: dict) -> None:
    """Create the folder; UserError if it exists with another request."""
    text, file = json.dumps(request, sort_keys=True), folder / "request.json"
    if file.is_file():
        if file.read_text() != text:
            raise UserError(
                f"{folder} holds features of other images or another extractor: "
                "remove it, or give another --work"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write(file, lambda stream: stream.write(text.encode()))


def write_part(
    folder: Path, number: int, images: ImageSet, extractor: Extractor, indices: range
) -> None:
    """Write features of these images, and last the file that marks them whole."""
    features: dict[str, list] = {}
    digests, sizes = [], set()
    for start in range(0, len(indices), extractor.batch_images):
        batch = images.read(indices[start : start + extractor.batch_images])
        digests += [digest(pixels) for pixels in batch]
        sizes |= {pixels.shape[:2] for pixels in batch}
        for key, value in extractor.features(batch).items():
            features.setdefault(key, []).append(value)
    for key, values in features.items():
        array = np.concatenate(values)
        write(folder / f"{number:06d}.{key}.npy", lambda s, a=array: np.save(s, a))
    text = json.dumps({"digests": digests, "sizes": sorted(sizes)})
    write(folder / f"{number:06d}.json", lambda stream: stream.write(text.encode()))


def write(file: Path, content: Callable) -> None:
    """Write atomically."""
    with replacing(file, shared=True) as partial, partial.open("wb") as stream:
        content(stream)
