"""A folder of images: `config.data.source = "folder"`, `config.data.path = DIR`.

    DIR/**/photo.jpg        an image: .png .jpg .jpeg .webp .bmp, at any depth
    DIR/**/photo.txt        its caption, if there is such a file
    DIR/dog/**/photo.jpg    of class "dog", if every image is in a sub-folder of DIR

Hidden files and folders are left out, links are followed. Files are listed once and
decoded at every use; nothing is kept in memory. Which colour lies behind transparent
pixels is decided by `transforms.Composite`, as for every source.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from lDM_jax import image
from lDM_jax.data.sources import SPLITS
from lDM_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SMALLEST_SPLIT = 20


def list_files(folder: Path) -> list[str]:
    """Paths of all visible files, relative to `folder`, sorted, with "/" between.

    A folder that is reached twice through links is listed once. Raises UserError for
    one that may not be read.
    """

    def refuse(error: OSError):
        raise UserError(f"config.data.path: {error}")

    files, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
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


class FolderSource:
    """The images of a folder, laid out as the module says, in a fixed split.

    source[i] -> {"image": uint8 "S S 4" RGBA} and, where the folder has them,
    "caption", a str ("" for an image without a caption), and "label", i32 "", the index
    in `classes`. The picture is the central square of the upright image, resized with
    antialiased bicubic to S = size_px, colours weighted by their alpha.

    path: the folder; "~" is the home folder.
    split: "train", "validation" or "test"; see `split_files`.

    Raises UserError, when made, for a path that is empty, missing, no folder or without
    images, and at source[i], naming the file, for one that cannot be read.
    """

    def __init__(self, path: str | Path, *, split: str = "train", size_px: int = 256):
        if split not in SPLITS:
            raise UserError(
                f"split is {split!r}; a folder has {', '.join(map(repr, SPLITS))}"
            )
        if size_px < 1:
            raise UserError(f"size_px is {size_px}; it must be at least 1")
        if not str(path):
            raise UserError("config.data.path is empty: give a folder of images")
        self.split = split
        self.size_px = size_px
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            problem = "is not a folder" if self.path.exists() else "does not exist"
            raise UserError(
                f"config.data.path = {str(path)!r} {problem}: give a folder of images"
            )
        listed = list_files(self.path)
        everything = [name for name in listed if name.lower().endswith(SUFFIXES)]
        if not everything:
            raise UserError(
                f"config.data.path = {str(path)!r} holds no images, also not in "
                f"sub-folders; valid are {', '.join(SUFFIXES)}"
            )
        sidecars = {name for name in listed if name.endswith(".txt")}
        in_folders = all("/" in name for name in everything)
        tops = {name.split("/")[0] for name in everything} if in_folders else set()
        self._classes = sorted(tops)
        self._has_captions = any(sidecar(name) in sidecars for name in everything)
        self._files = split_files(everything)[split]
        self._captioned = sidecars & {sidecar(name) for name in self._files}
        index = {name: label for label, name in enumerate(self._classes)}
        self._labels = None
        if self._classes:
            labels = [index[name.split("/")[0]] for name in self._files]
            self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> dict:
        example = {"image": self._image(i)}
        if self._has_captions:
            example["caption"] = self._caption(i)
        if self._labels is not None:
            example["label"] = self._labels[i]
        return example

    def _image(self, i: int) -> np.ndarray:
        data = self._read(self._files[i])
        try:
            pixels = image.decode(data)
        except ValueError as error:
            raise UserError(f"{self.path / self._files[i]} {error}") from None
        return image.resize(image.crop_square(pixels), self.size_px)

    def _caption(self, i: int) -> str:
        name = sidecar(self._files[i])
        if name not in self._captioned:
            return ""
        try:
            text = self._read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path / name} is not UTF-8: {error}") from None
        return " ".join(text.split())

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read {self.path / name}: {error.strerror}"
            ) from None

    @property
    def files(self) -> list[str]:
        """The images of this split, relative to `path`, in order."""
        return list(self._files)

    @property
    def has_captions(self) -> bool:
        """True if an image of any split has a caption file; then all have a caption."""
        return self._has_captions

    @property
    def captions(self) -> list[str] | None:
        """The caption of every image of this split, in order; None without any."""
        if not self._has_captions:
            return None
        return [self._caption(i) for i in range(len(self))]

    @property
    def classes(self) -> list[str]:
        """The names of the labels: the sub-folders of all splits, sorted, or none."""
        return list(self._classes)

    @property
    def labels(self) -> np.ndarray | None:
        """i32 "len(self)": the class of every image of this split; None without any."""
        return None if self._labels is None else self._labels.copy()

    @property
    def fingerprint(self) -> str:
        """Hash of the split's names, files, captions, the classes and size_px.

        In hexadecimal. Where the folder lies does not matter. Reads every file.
        """
        options = (self.split, self.size_px, self._classes, self._has_captions)
        digest = hashlib.sha256(repr(("folder", *options)).encode())
        for i, name in enumerate(self._files):
            digest.update(repr(name).encode())
            digest.update(hashlib.sha256(self._read(name)).digest())
            if self._has_captions:
                digest.update(repr(self._caption(i)).encode())
        return digest.hexdigest()


def sidecar(name: str) -> str:
    """The caption file of an image: the same name with .txt."""
    return os.path.splitext(name)[0] + ".txt"
