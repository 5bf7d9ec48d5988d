"""A folder of images: `config.data.source = "folder"`, `config.data.path = DIR`.

    DIR/**/photo.jpg            an image: .png .jpg .jpeg .webp .bmp .gif, at any depth
    DIR/**/photo.txt            its caption, if there is such a file
    DIR/dog/**/photo.jpg        of class "dog", if every image is in a sub-folder of DIR
    DIR/images/**/photo.jpg     with the label map
    DIR/segmentation/**/photo.png
    DIR/**/metadata.jsonl       instead of all these: one line an image, whose fields
                                are in `metadata`; file names start at its own folder
    DIR/{train,val,test}/...    any of these layouts a split; without, or with train/
                                alone, see `split_files`

Hidden files and folders are left out, links are followed. Files are listed once and
decoded at every use; nothing is kept in memory but names and lines of metadata. What
cannot be read raises BadExample at its use, which the pipeline counts and replaces.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.core.image import IMAGE_SUFFIXES
from lDM_jax.data import metadata
from lDM_jax.data.sources import SPLITS
from lDM_jax.data.transforms import check_option

METADATA = "metadata.jsonl"
PLAN, RECORDS = "cache.json", ".array_record"  # files of other sources
MAPS = ("images", "segmentation")  # sub-folders of images and their label maps
SMALLEST_SPLIT = 20
SPLIT_FOLDERS = dict.fromkeys(("train", "training"), "train") | {"test": "test"}
SPLIT_FOLDERS |= dict.fromkeys(("val", "valid", "validation"), "validation")


def list_files(folder: Path) -> list[str]:
    """Paths of all visible files, relative to `folder`, sorted, with "/" between.

    A folder that is reached twice through links is listed once. Raises UserError for
    one that may not be read.
    """

    def refuse(error: OSError):
        raise UserError(f"config.data.path: {error}")

    files, visited = [], set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(root).relative_to(folder)
        files += [(base / name).as_posix() for name in names if name[0] != "."]
    return sorted(files)


def split_files(files: list[str]) -> dict[str, list[str]]:
    """90 % train, 5 % validation, 5 % test, by the hash u in [0, 1) of the path.

    u < 0.9 trains, u < 0.95 validates: a file stays where it is when others come. A
    held-out split that would be empty takes the file of largest u instead. With fewer
    than 20 files every split is all of them.
    """
    if len(files) < SMALLEST_SPLIT:
        return dict.fromkeys(SPLITS, files)
    hashed = {name: _unit_hash(name) for name in files}
    ranked = sorted(files, key=lambda name: hashed[name])
    test = max(1, sum(u >= 0.95 for u in hashed.values()))
    validation = max(1, sum(0.9 <= u < 0.95 for u in hashed.values()))
    train = len(files) - validation - test
    parts = ranked[:train], ranked[train:-test], ranked[-test:]
    return {name: sorted(part) for name, part in zip(SPLITS, parts, strict=True)}


def _unit_hash(text: str) -> float:
    digest = hashlib.sha256(os.fsencode(text)).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class Entry(NamedTuple):
    """One image: its file, and either a line of metadata or what the layout tells.

    folder: of the metadata, where the names of further files begin.
    """

    file: str
    line: str = ""
    folder: str = ""
    caption: str = ""
    label: str | None = None
    segmentation: str = ""


class FolderSource(metadata.NamedLabels):
    """The images of a folder, laid out as the module says, in a fixed split.

    source[i] -> {"image": uint8 "H W 3", "H W 4" with transparency} and, where the
    folder has them, what `metadata.build` gives for `conditions`: "caption" ("" for an
    image without one), "label", the index in `classes`, "layout", whose labels are
    indices in `categories` or the numbers of the metadata, "segmentation", "mask".

    path: the folder; "~" is the home folder. split: "train", "validation" or "test".
    min_px: shorter sides of less are not used. The constructor raises UserError for a
    path that is empty, missing, not a folder or without images, and for metadata that
    cannot be read; source[i] raises BadExample, naming the file that cannot be used.
    """

    def __init__(self, path: str | Path, *, split: str = "train", min_px: int = 1):
        check_option("split", split, SPLITS)
        self.split, self.min_px = split, min_px
        self.path = check_folder(path)
        files = list_files(self.path)
        entries, names = self._entries(files)
        if not entries:
            raise UserError(
                f"config.data.path = {str(path)!r} holds no images, also not in "
                f"sub-folders; valid are {', '.join(IMAGE_SUFFIXES)}, or a {METADATA}"
                + other_source(files)
            )
        self._names = names
        by_file = {entry.file: entry for entry in entries}
        self._entries_here = [by_file[file] for file in _split(sorted(by_file))[split]]
        in_use = {name for e in entries for name in (e.file, e.segmentation, e.caption)}
        in_use |= {name for name in files if os.path.basename(name) == METADATA}
        self.unused = [name for name in files if name not in in_use]

    def _entries(self, files: list[str]) -> tuple[list[Entry], metadata.Names]:
        """All images of all splits, and the names of their classes; sets `_keys`."""
        manifests = [name for name in files if os.path.basename(name) == METADATA]
        if manifests:
            return self._read_metadata(manifests)
        entries = read_layout(files)
        self._keys, self._label_count = [], 0
        if any(entry.caption for entry in entries):
            self._keys.append("caption")
        classes = {entry.label for entry in entries}
        if entries and None not in classes:
            self._keys.append("label")
        if any(entry.segmentation for entry in entries):
            self._keys.append("segmentation")
        return entries, metadata.Names(classes if "label" in self._keys else ())

    def _read_metadata(
        self, manifests: list[str]
    ) -> tuple[list[Entry], metadata.Names]:
        """Entries of every line of every metadata file; UserError for a bad line."""
        entries, files, keys = [], set(), set()
        classes, categories = set(), set()
        for manifest in manifests:
            folder = manifest[: -len(METADATA)]
            lines = [x for x in self._text(manifest).splitlines() if x.strip()]
            for number, line in enumerate(lines, 1):
                where = f"{self.path / manifest}, line {number},"
                fields = _parse(line, where)
                entries.append(Entry(folder + fields["file_name"], line, folder))
                if entries[-1].file in files:
                    raise UserError(f"{where} is the second of {fields['file_name']!r}")
                files.add(entries[-1].file)
                keys |= fields.keys()
                classes.add(fields.get("label"))
                boxes = metadata.labeled_boxes(fields)
                categories |= set(boxes[1]) if boxes else set()
        self._keys = [key for key in ("label", *metadata.MAPS) if key in keys]
        self._keys += ["caption"] if keys & set(metadata.CAPTIONS) else []
        self._keys += ["layout"] if keys & {"boxes", "objects"} else []
        numbers = (value for value in classes if isinstance(value, int))
        self._label_count = max(numbers, default=-1) + 1
        return entries, metadata.Names(_texts(classes), _texts(categories))

    def __len__(self) -> int:
        return len(self._entries_here)

    def __getitem__(self, i: int) -> dict:
        entry = self._entries_here[i]
        return metadata.build(
            self._read(entry.file),
            self._fields(entry),
            names=self._names,
            read=lambda name: self._read(entry.folder + name),
            where=str(self.path / entry.file),
            min_px=self.min_px,
            keys=self._keys,
        )

    def _fields(self, entry: Entry) -> dict:
        if entry.line:
            return metadata.parse(entry.line)
        fields = {"caption": self._text(entry.caption) if entry.caption else ""}
        if entry.label is not None:
            fields["label"] = entry.label
        if entry.segmentation:
            fields["segmentation"] = entry.segmentation
        return fields

    def _text(self, name: str) -> str:
        try:
            return self._read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadExample(f"{self.path / name} is not UTF-8: {error}") from None

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            file = self.path / name
            raise BadExample(f"cannot read {file}: {error.strerror}") from None

    @property
    def files(self) -> list[str]:
        """The images of this split, relative to `path`, in order."""
        return [entry.file for entry in self._entries_here]

    @property
    def conditions(self) -> list[str]:
        """The keys of an example besides "image"."""
        return sorted(self._keys)

    @property
    def captions(self) -> list[str] | None:
        """The (first) caption of every image of this split; None without any."""
        if "caption" not in self._keys:
            return None
        captions = [self.captions_of(i) for i in range(len(self))]
        return [texts[0] if texts else "" for texts in captions]

    def captions_of(self, i: int) -> tuple[str, ...]:
        """All captions of an image of this split; reads no image."""
        return metadata.captions(self._fields(self._entries_here[i])) or ()

    @property
    def labels(self) -> np.ndarray | None:
        """i32 "len(self)": the class of every image of this split; None without any."""
        if "label" not in self._keys:
            return None
        values = [
            json.loads(entry.line)["label"] if entry.line else entry.label
            for entry in self._entries_here
        ]
        return np.array([self._names.label(value) for value in values], np.int32)

    @property
    def listing(self) -> str:
        """Hash of the split's names, byte sizes and metadata lines; reads no image."""
        digest = hashlib.sha256(repr(("folder", self.split, self._keys)).encode())
        for entry in self._entries_here:
            file = self.path / entry.file
            size = file.stat().st_size if file.exists() else -1
            digest.update(repr((entry, size)).encode())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """Hash of the split's names, files, captions and classes, in hexadecimal.

        Where the folder lies does not matter. Reads every file; `listing` does not.
        """
        options = (self.split, self.min_px, self._keys, self.classes, self.categories)
        digest = hashlib.sha256(repr(("folder", *options)).encode())
        for entry in self._entries_here:
            digest.update(repr(entry).encode())
            digest.update(hashlib.sha256(self._read(entry.file)).digest())
            if entry.caption:
                digest.update(repr(self._text(entry.caption)).encode())
        return digest.hexdigest()


def other_source(files: list[str]) -> str:
    """A hint at the source that reads these files instead, or ""."""
    if PLAN in files:
        return "; it is a latents cache: set config.data.source = 'latents'"
    if any(RECORDS in name for name in files):
        return "; these are records: set config.data.source = 'array_record'"
    if any(name.endswith(".tar") for name in files):
        return "; tar shards are converted: python -m lDM_jax.tools.convert_webdataset"
    return ""


def check_folder(path: str | Path) -> Path:
    """The folder of that name; UserError if it is empty, missing or a file."""
    if not str(path):
        raise UserError("config.data.path is empty: give a folder of images")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        problem += ": give a folder of images"
        raise UserError(f"config.data.path = {str(path)!r} {problem}")
    return folder


def read_layout(names: list[str]) -> list[Entry]:
    """The images among listed files, with captions and labels from their folders."""
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    skip = int(_has_split_folders(images))
    tops, files, entries = {_top(name, skip) for name in images}, set(names), []
    for name in images:
        caption = sidecar(name) if sidecar(name) in files else ""
        entry, top = Entry(name, caption=caption), _top(name, skip)
        if tops == set(MAPS):
            if top == MAPS[0]:
                label_map = _label_map(name, skip)
                entries.append(entry._replace(segmentation=label_map))
        else:
            entries.append(entry._replace(label=None if "" in tops else top))
    return entries


def _top(name: str, skip: int) -> str:
    """The folder of a file below `skip` others; "" for none."""
    parts = name.split("/")
    return parts[skip] if len(parts) > skip + 1 else ""


def _label_map(name: str, skip: int) -> str:
    """The label map of an image: in the other folder, the same stem with .png."""
    parts = os.path.splitext(name)[0].split("/")
    parts[skip] = MAPS[1]
    return "/".join(parts) + ".png"


def _has_split_folders(files: list[str]) -> bool:
    """True if all files lie in folders named after splits, "train" among them."""
    tops = {name.split("/")[0] if "/" in name else "" for name in files}
    splits = {SPLIT_FOLDERS.get(top) for top in tops}
    return None not in splits and "train" in splits


def _split(files: list[str]) -> dict[str, list[str]]:
    """The splits that folders name, of which two may be one, or `split_files`."""
    if not _has_split_folders(files):
        return split_files(files)
    parts = {split: [] for split in SPLITS}
    for name in sorted(files):
        parts[SPLIT_FOLDERS[name.split("/")[0]]].append(name)
    if not (parts["validation"] or parts["test"]):
        return split_files(files)
    parts["validation"] = parts["validation"] or parts["test"]
    parts["test"] = parts["test"] or parts["validation"]
    return parts


def _parse(line: str, where: str) -> dict:
    """The fields of a line; UserError, naming file and line, if they are not valid."""
    try:
        fields = metadata.parse(line)
    except ValueError:
        raise UserError(f"{where} is not JSON") from None
    problem = metadata.check(fields)
    if not problem and not isinstance(fields.get("file_name"), str):
        problem = "has no file_name"
    if problem:
        raise UserError(f"{where} {problem}")
    return fields


def _texts(values: Iterable) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def sidecar(name: str) -> str:
    """The caption file of an image: the same name with .txt."""
    return os.path.splitext(name)[0] + ".txt"
