"""ArrayRecord shards: `config.data.source = "array_record"`, `config.data.path = DIR`.

    DIR/train-00000.array_record    the training split, in any number of files
    DIR/validation-*.array_record   the others; without, 90, 5 and 5 % of the records
    DIR/test-*.array_record
    DIR/*.json                      {"classes": [...], "categories": [...]}, their union
                                    counts: the names of labels, where they have names;
                                    "num_classes" where they are numbers

A record is a header and files: u32 length of the header (little endian), the header
as JSON, the bytes of the image, then those of further files. The header has the
fields of `metadata`; "bytes" = {"image": 1234, "segmentation": 567} says how long each
file is, in their order; without it the image is all the rest. `pack` writes records;
`python -m lDM_jax.tools.convert_webdataset` makes such folders of tar shards.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data import metadata
from lDM_jax.data.folder import check_folder
from lDM_jax.data.sources import SPLITS

SUFFIX = ".array_record"
LENGTH = struct.Struct("<I")


def pack(fields: Mapping, files: Mapping[str, bytes]) -> bytes:
    """A record; files: "image", and what the fields name as segmentation and mask."""
    header = {**fields, "bytes": {name: len(data) for name, data in files.items()}}
    text = json.dumps(header).encode()
    return b"".join([LENGTH.pack(len(text)), text, *files.values()])


def unpack(record: bytes) -> tuple[dict, dict[str, bytes]]:
    """A record -> (fields, files); ValueError for a damaged one."""
    (length,) = LENGTH.unpack_from(record)
    start = LENGTH.size + length
    fields = metadata.parse(record[LENGTH.size : start])
    files = {}
    for name, size in fields.pop("bytes", {"image": len(record) - start}).items():
        files[name] = record[start : start + size]
        start += size
    if start != len(record):
        raise ValueError(f"{len(record)} bytes where the header says {start}")
    return fields, files


class RecordSource(metadata.NamedLabels):
    """The records of a folder's shards; examples as `metadata.build` makes them.

    path, split, min_px: as `folder.FolderSource`. The first record determines the
    conditions. The constructor raises UserError for a folder without shards and for a
    first record that cannot be read; source[i] raises BadExample.
    """

    def __init__(self, path: str | Path, *, split: str = "train", min_px: int = 1):
        self._remake = partial(RecordSource, path, split=split, min_px=min_px)
        self.path, self.split, self.min_px = check_folder(path), split, min_px
        files = sorted(str(file) for file in self.path.glob(f"[!.]*{SUFFIX}*"))
        if not files:
            raise UserError(f"config.data.path = {str(path)!r} holds no *{SUFFIX}")
        by_split = {s: [f for f in files if Path(f).name.startswith(s)] for s in SPLITS}
        has_splits = by_split["train"] and (by_split["validation"] or by_split["test"])
        if has_splits:
            files = by_split[split] or by_split["validation"] or by_split["test"]
        self._records = ArrayRecordDataSource(files)
        self._indices = np.arange(len(self._records))
        if not has_splits:
            self._indices = self._indices[assign_splits(len(self._records)) == split]
        notes = [json.loads(f.read_text()) for f in self.path.glob("[!.]*.json")]
        classes, categories = (
            {name for stored in notes for name in stored.get(key, ())}
            for key in ("classes", "categories")
        )
        self._names = metadata.Names(classes, categories)
        self._label_count = max((n.get("num_classes", 0) for n in notes), default=0)
        self.conditions = self._conditions()

    def _conditions(self) -> list[str]:
        if not len(self):
            return []
        try:
            fields, files = unpack(self._records[int(self._indices[0])])
        except (ValueError, struct.error, AttributeError) as error:
            raise UserError(f"{self.path}: the first record: {error}") from None
        keys = ["label"] if "label" in fields else []
        keys += [name for name in metadata.MAPS if name in files]
        keys += ["caption"] if metadata.captions(fields) else []
        return keys + (["layout"] if metadata.labeled_boxes(fields) else [])

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> dict:
        where = f"{self.path}, record {self._indices[i]} of {self.split},"
        try:
            fields, files = unpack(self._records[int(self._indices[i])])
        except (ValueError, struct.error, AttributeError) as error:
            raise BadExample(f"{where} is damaged: {error}") from None
        return metadata.build(
            files.get("image", b""),
            {**fields, **{name: name for name in files if name in metadata.MAPS}},
            names=self._names,
            read=files.__getitem__,
            where=where,
            min_px=self.min_px,
            keys=self.conditions,
        )

    @property
    def listing(self) -> str:
        """Hash of the files' names and sizes, the split and its length."""
        digest = hashlib.sha256(repr(("records", self.split, len(self))).encode())
        for file in sorted(self.path.glob(f"[!.]*{SUFFIX}*")):
            digest.update(repr((file.name, file.stat().st_size)).encode())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """Hash of all records of the split, in hexadecimal."""
        digest = hashlib.sha256(repr(("records", self.split, self.min_px)).encode())
        for index in self._indices:
            digest.update(hashlib.sha256(self._records[int(index)]).digest())
        return digest.hexdigest()

    def __reduce__(self):
        return self._remake, ()


def assign_splits(count: int) -> np.ndarray:
    """A split's name for each of `count` records: 90, 5, 5 %, by default_rng(0).

    A record keeps its split when others come after it. With fewer than 20 records, or
    where a split would be empty, the last ones are held out, two in all.
    """
    u = np.random.default_rng(0).random(count)
    splits = np.array(SPLITS)[(u >= 0.9).astype(int) + (u >= 0.95)]
    if count > 2 and set(splits.tolist()) != set(SPLITS):
        splits[:], splits[-2], splits[-1] = "train", "validation", "test"
    return splits
