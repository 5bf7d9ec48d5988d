"""Random access to examples: the embedded emoji and arrays in memory.

A source has `len(source)`, `source[i]` (a dict of numpy values and strings, the same at
every call; BadExample for one that cannot be used) and `fingerprint`, a hash of its
content and options, by which a cache made from a source knows whether it still fits.
It may have `conditions`, the keys of its examples besides "image", `num_classes`,
`classes` and `categories`, the names of the images' and the boxes' labels by number,
and `listing`, a fingerprint that reads no image.
Sources are picklable and cheap to copy to a worker. What is random belongs to
`transforms.py`.

Images are uint8, RGBA "H W 4" or opaque "H W 3", here "S S 4"; `transforms.Composite`
decides which color lies behind them, `crop.Crop` what is shown.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.core.files import ASSETS
from lDM_jax.data.transforms import check_option

EMOJI = ASSETS / "emoji.array_record"
SPLITS = ("train", "validation", "test")


def read_records(path: str | Path) -> list[bytes]:
    """All records of an ArrayRecord file, in the order of the file.

    Raises UserError without such a file, and for one that cannot be read to its end.
    """
    if not Path(path).is_file():
        raise UserError(f"no ArrayRecord file at {path}")
    try:
        options = "readahead_buffer_size:0,max_parallelism:0"  # leaves no thread pool
        reader = ArrayRecordReader(str(path), options)
        records = reader.read_all()
        reader.close()
    except (IndexError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a whole ArrayRecord file: {error}") from None
    return records


def parse_record(record: bytes) -> tuple[dict[str, str], bytes]:
    """One emoji record -> (header, PNG bytes); the format is in tools/make_emoji.py."""
    (length,) = struct.unpack_from("<I", record)
    return json.loads(record[4 : 4 + length]), record[4 + length :]


def pad_square(pixels: np.ndarray) -> np.ndarray:
    """uint8 "H W 4" -> "S S 4" with S = max(H, W), centered, the border transparent."""
    height, width, channels = pixels.shape
    size = max(height, width)
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size, channels), np.uint8)
    square[top : top + height, left : left + width] = pixels
    return square


class EmojiSource:
    """3,655 captioned emoji of 99 subgroups, in a fixed split; nothing is downloaded.

    source[i] -> {"image": uint8 "S S 4" RGBA, "caption": str, "label": i32 ""} where
    the label is the index of the emoji's subgroup in `subgroups`. The image is the
    font's (136 x 128), padded to a square and resized to size_px with the colors
    weighted by their alpha, so that invisible pixels do not darken the edge.

    split: "train" (3,290), "validation" (177) or "test" (188).
    size_px: S. Images are decoded at first use and kept: 54 MB at 64 px.
    path: another file of the same format.
    """

    def __init__(
        self, *, split: str = "train", size_px: int = 64, path: str | Path | None = None
    ):
        check_option("split", split, SPLITS)
        if size_px < 1:
            raise UserError(f"size_px is {size_px}; it must be at least 1")
        self.split, self.size_px, self.path = split, size_px, Path(path or EMOJI)
        all_records = [parse_record(record) for record in read_records(self.path)]
        records = [item for item in all_records if item[0]["split"] == split]
        self._subgroups = sorted({header["subgroup"] for header, _ in all_records})
        self._groups = sorted({header["group"] for header, _ in all_records})
        self._headers = [header for header, _ in records]
        self._pngs = [png for _, png in records]
        self._images: list[np.ndarray | None] = [None] * len(records)
        self._labels = self._numbers("subgroup", self._subgroups)

    def _numbers(self, key: str, names: list[str]) -> np.ndarray:
        return np.array(
            [names.index(header[key]) for header in self._headers], np.int32
        )

    def __len__(self) -> int:
        return len(self._headers)

    def __getitem__(self, i: int) -> dict:
        return {
            "image": self._image(i),
            "caption": self._headers[i]["caption"],
            "label": self._labels[i],
        }

    def _image(self, i: int) -> np.ndarray:
        pixels = self._images[i]
        if pixels is None:
            square = pad_square(image.decode(self._pngs[i]))
            # PIL multiplies RGBA by its alpha before it filters, and divides after.
            pixels = image.resize(square, self.size_px)
            pixels.setflags(write=False)
            self._images[i] = pixels
        return pixels

    @property
    def captions(self) -> list[str]:
        """The English name of every emoji of this split, in order."""
        return [header["caption"] for header in self._headers]

    @property
    def labels(self) -> np.ndarray:
        """i32 "len(self)": the subgroup of every emoji of this split."""
        return self._labels.copy()

    @property
    def subgroups(self) -> list[str]:
        """The names of the labels, sorted: the 99 subgroups of all splits."""
        return list(self._subgroups)

    @property
    def classes(self) -> list[str]:
        """As `subgroups`."""
        return self.subgroups

    @property
    def num_classes(self) -> int:
        """How many subgroups there are in all splits."""
        return len(self._subgroups)

    @property
    def groups(self) -> list[str]:
        """The 9 groups of all splits, sorted."""
        return list(self._groups)

    @property
    def group_labels(self) -> np.ndarray:
        """i32 "len(self)": the index in `groups` of every emoji of this split."""
        return self._numbers("group", self._groups)

    @property
    def fingerprint(self) -> str:
        """Hash of the split's headers and images and of size_px, in hexadecimal."""
        digest = hashlib.sha256(f"emoji {self.split} {self.size_px}".encode())
        for header, png in zip(self._headers, self._pngs, strict=True):
            digest.update(json.dumps(header, sort_keys=True).encode())
            digest.update(hashlib.sha256(png).digest())
        return digest.hexdigest()

    def __reduce__(self):
        options = {"split": self.split, "size_px": self.size_px, "path": self.path}
        return partial(EmojiSource, **options), ()


class First:
    """The first `count` examples (or all) of a source, with what it has of SHARED."""

    SHARED = ("conditions", "num_classes", "classes", "categories", "captions_of")

    def __init__(self, source, count: int):
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> dict:
        if not -self._count <= i < self._count:
            raise IndexError(f"example {i} of {self._count}")
        return self._source[i % self._count]

    def __getattr__(self, name: str):
        if name in self.SHARED:
            return getattr(self._source, name)
        raise AttributeError(f"{type(self).__name__} has no {name}")

    @property
    def listing(self) -> str:
        """As `fingerprint`, of the source's listing where it has one."""
        whole = getattr(self._source, "listing", None) or self._source.fingerprint
        text = f"first {self._count} of {whole}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Hash of the whole source's fingerprint and the count, in hexadecimal."""
        text = f"first {self._count} of {self._source.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()


class ArraySource:
    """Examples held in memory, such as cached moments with their tokens.

    source[i] -> {key: arrays[key][i]}. All arrays have the same first extent; raises
    ValueError when they differ or when there is none.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = {key: np.asarray(value) for key, value in arrays.items()}
        lengths = {k: v.shape[0] if v.ndim else None for k, v in self._arrays.items()}
        if len(set(lengths.values())) != 1 or None in lengths.values():
            text = f"the arrays of a source need one common length, got {lengths}"
            raise ValueError(text)
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict:
        return {key: value[i] for key, value in self._arrays.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of the keys, types, shapes and values, in hexadecimal."""
        digest = hashlib.sha256(b"arrays")
        for key, value in sorted(self._arrays.items()):
            digest.update(f"{key} {value.dtype.str} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()
