"""COCO and OpenImages as they are distributed: images, and files with their boxes.

`config.data.source = "coco"`, `config.data.path = DIR` (cocodataset.org, 2017 or 2014):

    DIR/train2017/*.jpg    DIR/val2017/*.jpg
    DIR/annotations/{instances,captions}_{train,val}2017.json
    DIR/annotations/stuff_{train,val}2017.json     optional: its boxes too

`config.data.source = "openimages"` (storage.googleapis.com/openimages/web):

    DIR/{train,validation,test}/*.jpg
    DIR/*{train,validation,test}-annotations-bbox.csv
    DIR/*class-descriptions-boxable.csv             optional: the order

Labels count from 0: COCO's in the order of its category ids, OpenImages' in that of its
class file, else of their names. COCO's test split is its validation split. Images
whose file is missing are left out. Everything but the images is held in memory, in
arrays.
"""

import csv
import hashlib
import json
from array import array
from pathlib import Path

import numpy as np

from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data import metadata
from lDM_jax.data.folder import check_folder
from lDM_jax.data.sources import SPLITS
from lDM_jax.data.transforms import check_option

COCO_HELP = (
    "give a folder with train2017/, val2017/ and annotations/ of cocodataset.org"
)
OPENIMAGES_HELP = (
    "give a folder with train/, validation/ and *-annotations-bbox.csv of OpenImages "
    "(storage.googleapis.com/openimages/web)"
)


class Table:
    """Boxes added in any order, stored as arrays and read by image number."""

    def __init__(self):
        self._keys, self._labels, self._boxes = array("q"), array("i"), array("d")

    def add(self, key: int, label: int, box) -> None:
        """One box (left, top, width, height) of the image number `key`."""
        self._keys.append(key)
        self._labels.append(label)
        self._boxes.extend(box)

    def close(self, count: int) -> "Table":
        """Sort by key, for keys 0 .. count - 1; rows of a key keep their order."""
        keys = np.array(self._keys, np.int64)
        order = np.argsort(keys, kind="stable")
        self.starts = np.searchsorted(keys[order], np.arange(count + 1))
        self.labels = np.array(self._labels, np.int32)[order]
        self.boxes = np.array(self._boxes, np.float32).reshape(-1, 4)[order]
        del self._keys, self._labels, self._boxes
        return self

    def __getitem__(self, key: int) -> tuple[list, list]:
        """(boxes, labels) of an image."""
        rows = slice(self.starts[key], self.starts[key + 1])
        return self.boxes[rows].tolist(), self.labels[rows].tolist()


class Annotated:
    """Images with boxes and captions; examples as `metadata.build` makes them.

    folder: of the images; files: their names; boxes: a `Table`, in pixels or in
    fractions; captions: a list of texts for each image, or None; categories: the
    names of the boxes' labels.
    """

    def __init__(
        self, folder, files, boxes, *, in_pixels, categories, captions=None, min_px=1
    ):
        self.folder, self.files, self._boxes = folder, files, boxes
        self._in_pixels, self._captions = in_pixels, captions
        self.categories, self.min_px = categories, min_px

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict:
        file = self.folder / self.files[i]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise BadExample(f"cannot read {file}: {error.strerror}") from None
        boxes, labels = self._boxes[i]
        if self._in_pixels:
            fields = {"objects": {"bbox": boxes, "categories": labels}}
        else:
            fields = {"boxes": boxes, "labels": labels}
        if self._captions is not None:
            fields["caption"] = self._captions[i]
        return metadata.build(
            data,
            fields,
            names=metadata.Names(),
            read=bytes,
            where=str(file),
            min_px=self.min_px,
            keys=self.conditions,
        )

    @property
    def conditions(self) -> list[str]:
        """The keys of an example besides "image"."""
        return ["layout"] + (["caption"] if self._captions is not None else [])

    @property
    def fingerprint(self) -> str:
        """Hash of the file names, boxes and captions; the images are not read."""
        digest = hashlib.sha256(b"annotated")
        digest.update(repr((self.files, self.categories, self._captions)).encode())
        for values in (self._boxes.starts, self._boxes.labels, self._boxes.boxes):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def coco(path: str | Path, *, split: str = "train", min_px: int = 1) -> Annotated:
    """COCO; see the module. UserError names what is missing."""
    root = _root(path, split, COCO_HELP)
    part = "train" if split == "train" else "val"
    notes = sorted((root / "annotations").glob(f"instances_{part}20*.json"))
    if not notes:
        raise UserError(
            f"{root} has no annotations/instances_{part}2017.json: {COCO_HELP}"
        )
    year = notes[-1].stem.split(part)[-1]
    folder = root / f"{part}{year}"
    files = _list_files(folder, COCO_HELP)
    stuff = root / "annotations" / f"stuff_{part}{year}.json"
    parts = [_json(file) for file in (notes[-1], stuff) if file.exists()]
    rows = [row for row in parts[0]["images"] if row["file_name"] in files]
    rows.sort(key=lambda row: row["id"])
    index = {row["id"]: i for i, row in enumerate(rows)}
    kinds = {k["id"]: k["name"] for part in parts for k in part["categories"]}
    order = {number: label for label, number in enumerate(sorted(kinds))}
    table = Table()
    for row in (row for part in parts for row in part["annotations"]):
        if row["image_id"] in index:
            table.add(index[row["image_id"]], order[row["category_id"]], row["bbox"])
    texts, file = None, root / "annotations" / f"captions_{part}{year}.json"
    if file.exists():
        texts = [[] for _ in rows]
        for row in _json(file)["annotations"]:
            if row["image_id"] in index:
                texts[index[row["image_id"]]].append(row["caption"])
    return Annotated(
        folder,
        [row["file_name"] for row in rows],
        table.close(len(rows)),
        in_pixels=True,
        categories=[kinds[number] for number in sorted(kinds)],
        captions=texts,
        min_px=min_px,
    )


def openimages(path: str | Path, *, split: str = "train", min_px: int = 1) -> Annotated:
    """OpenImages' boxes; see the module. Images without a box are left out."""
    root = _root(path, split, OPENIMAGES_HELP)
    name = f"{split}-annotations-bbox.csv"
    notes = sorted(root.glob(f"*{name}"))
    if not notes:
        raise UserError(f"{root} has no {name}: {OPENIMAGES_HELP}")
    files = _list_files(root / split, OPENIMAGES_HELP)
    names, labels = _openimages_classes(root, notes[0])
    index, table = {}, Table()
    with open(notes[0], newline="") as file:
        for row in csv.DictReader(file):
            if row["ImageID"] + ".jpg" not in files:
                continue
            left, top = float(row["XMin"]), float(row["YMin"])
            box = left, top, float(row["XMax"]) - left, float(row["YMax"]) - top
            key = index.setdefault(row["ImageID"], len(index))
            table.add(key, labels[row["LabelName"]], box)
    return Annotated(
        root / split,
        [f"{name}.jpg" for name in index],
        table.close(len(index)),
        in_pixels=False,
        categories=names,
        min_px=min_px,
    )


def _openimages_classes(root: Path, notes: Path) -> tuple[list[str], dict[str, int]]:
    """(names by label, label by OpenImages' code)."""
    descriptions = sorted(root.glob("*class-descriptions-boxable.csv"))
    if descriptions:
        with open(descriptions[0], newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row and row[0] != "LabelName"]
        return [row[1] for row in rows], {row[0]: i for i, row in enumerate(rows)}
    with open(notes, newline="") as file:
        codes = sorted({row["LabelName"] for row in csv.DictReader(file)})
    return codes, {code: i for i, code in enumerate(codes)}


def _root(path: str | Path, split: str, how: str) -> Path:
    check_option("split", split, SPLITS)
    try:
        return check_folder(path)
    except UserError as error:
        raise UserError(f"{error}; {how}") from None


def _list_files(folder: Path, how: str) -> set[str]:
    """The names of a folder's files; UserError if it has none."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if not names:
        raise UserError(f"{folder} holds no images: {how}")
    return names


def _json(file: Path):
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None


SOURCES = {"coco": coco, "openimages": openimages}
