"""Sets of pictures to be measured: folders, npz batches, a config's own data.

A set has a length, `read(indices)`, which gives uint8 "H W 3" pictures, `identity`, by
which an interrupted evaluation knows that the set is still the same, and `record`, what
is known of its preparation. Nothing is held in memory but what is asked for. Pictures
are uint8 here, whatever made them: features of unrounded pictures are of other ones.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.core.image import IMAGE_SUFFIXES, LOSSY_SUFFIXES
from lDM_jax.data.pipeline import example_rng
from lDM_jax.data.transforms import on_white
from lDM_jax.from_config import datasets

THREADS = 8


class ImageSet(Protocol):
    """What `features.extract` needs."""

    name: str
    identity: str
    record: dict

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[np.ndarray]: ...


class Folder:
    """All image files below a folder, in the order of their names; alpha on white."""

    def __init__(self, path: str | Path):
        self.name = str(path)
        root = Path(path)
        self._files = sorted(
            file
            for file in root.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        )
        if not self._files:
            raise UserError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        stats = [(file.relative_to(root), file.stat()) for file in self._files]
        facts = [[str(name), stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        self.identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        lossy = sum(file.suffix.lower() in LOSSY_SUFFIXES for file in self._files)
        self.record = {"pictures": "folder", "lossy_files": lossy}
        self._threads = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The pictures; UserError naming a file that cannot be read."""
        return list(self._threads.map(self._one, indices))

    def _one(self, index: int) -> np.ndarray:
        file = self._files[index]
        try:
            return on_white(image.decode(file.read_bytes()))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} {error}") from None


class Batch:
    """The array arr_0 of an npz file, uint8 "n H W 3", read in pieces from the disk.

    Pieces should be asked for in rising order: a compressed file is read through.
    """

    def __init__(self, path: str | Path):
        self.name, self._path = str(path), Path(path)
        with zipfile.ZipFile(path) as npz, npz.open("arr_0.npy") as stream:
            shape, fortran, dtype = read_header(stream)
            self._start = stream.tell()
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran:
            raise UserError(
                f"{path}: arr_0 is {dtype} {shape}; give uint8 (n, height, width, "
                "3), values 0 to 255: floating-point pictures are rounded first, as "
                "they would be in a file"
            )
        if shape[0] < 1:
            raise UserError(f"{path}: arr_0 has no pictures")
        self._shape, known = shape, self._path.stat()
        facts = f"{self._path.name} {known.st_size} {known.st_mtime_ns} arr_0"
        self.identity = hashlib.sha256(facts.encode()).hexdigest()
        self.record = {"pictures": "npz"}

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The pictures; UserError for a file that ends too early."""
        shape, pictures = self._shape[1:], []
        size = int(np.prod(shape))
        try:
            with zipfile.ZipFile(self._path) as npz, npz.open("arr_0.npy") as stream:
                for index in indices:
                    stream.seek(self._start + index * size)
                    data = np.frombuffer(stream.read(size), np.uint8)
                    pictures.append(data.reshape(shape))
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise UserError(f"{self.name} is damaged: {error}") from None
        return pictures


class Data:
    """A split of a config's data set through its own transform, as held-out pictures.

    Never mirrored, and cropped in the middle where training crops at random; what
    else is random (a background) is as in epoch 0. UserError for cached latents.
    """

    def __init__(self, config: ConfigDict, split: str):
        config = ConfigDict(config.to_dict())
        with config.unlocked():
            config.task = "unconditional"
        data = config.data
        if data.source == "latents":
            raise UserError(
                "config.data.source = 'latents' holds no pictures: give the config of "
                "the data that the latents were made of"
            )
        self._source = datasets.source(config, split)
        self._transform = datasets.transform(config, "validation", flip=0.0)
        self.name = f"{data.source} ({split})"
        self.record = {
            "pictures": "data",
            "source": data.source,
            "split": split,
            "source_fingerprint": self._source.fingerprint,
            "transform": {
                "size_px": data.size_px,
                "background": data.background,
                "crop": "center",
                "resize_px": data.resize_px,
                "filter": data.filter,
                "flip": 0.0,
            },
        }
        text = json.dumps(self.record, sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The pictures as uint8, as samples are written."""
        pictures = []
        for index in indices:
            rng = example_rng(0, index, epoch=0)
            example = self._transform(self._source[int(index)], rng)
            pictures.append(image.to_uint8(example["image"]))
        return pictures


class Part:
    """Some pictures of a set, by their indices."""

    def __init__(self, whole: ImageSet, indices: Sequence[int]):
        self._whole, self._indices = whole, np.asarray(indices)
        self.name, self.record = whole.name, whole.record
        text = whole.identity.encode() + self._indices.astype("<i8").tobytes()
        self.identity = hashlib.sha256(text).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The chosen pictures."""
        return self._whole.read([int(self._indices[index]) for index in indices])


def read_header(stream) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of an npy stream. UserError for another content."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        return np.lib.format.read_array_header_2_0(stream)
    except ValueError as error:
        raise UserError(f"{getattr(stream, 'name', 'array')}: {error}") from None


def digest(picture: np.ndarray) -> int:
    """64 bits of the SHA-256 of a picture's extent and pixels."""
    sha = hashlib.sha256(str(picture.shape).encode())
    sha.update(np.ascontiguousarray(picture).data)
    return int.from_bytes(sha.digest()[:8], "little")
