"""Latents on disk: `config.data.source = "latents"`, `config.data.path = DIR`.

What `python -m lDM_jax.tools.encode_latents` writes:

    DIR/cache.json                 see `Plan`: what was encoded, how, by which weights
    DIR/train/00000/moments.npy    f16 "n copies h w m" of the examples
    DIR/train/00000/tokens.npy     [0, shard_size) that can be used; and every other key
    DIR/train/00001/...            of the task's batch rows, each "n copies ..."

A copy is a draw of the transform, and its mirror image where the config mirrors: copy
2 d + 1 is the mirrored draw d. Shards are read through memory maps, a row at a time: a
row is one read, and nothing but open files is held. A shard's folder appears under its
name when it is whole. bfloat16 is stored as the uint16 of its bits.
"""

import dataclasses
import hashlib
import json
import os
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.random import Generator

from lDM_jax.core.errors import UserError
from lDM_jax.core.files import replacing
from lDM_jax.data.sources import SPLITS
from lDM_jax.data.transforms import Example, Transform

PLAN = "cache.json"
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
HOW = "python -m lDM_jax.tools.encode_latents --config CONFIG --out DIR makes one"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a cache holds; all of it must agree when encoding continues.

    first_stage: fingerprint of its weights. transform: the options that made the
    examples. sources: by split, the fingerprint of its data. lengths: by split, how
    many examples there are, also those that cannot be used. num_classes: 0 without;
    classes: their names by number, where they have names.
    """

    first_stage: str
    transform: dict
    sources: dict
    lengths: dict
    num_classes: int = 0
    classes: list = dataclasses.field(default_factory=list)
    dtype: str = "float16"
    shard_size: int = 1024
    draws: int = 1
    mirrored: bool = False
    version: int = 1

    @property
    def copies(self) -> int:
        """Copies of an example: draws, times two if they are mirrored."""
        return self.draws * (2 if self.mirrored else 1)

    def num_shards(self, split: str) -> int:
        """Folders of a split."""
        return -(-self.lengths[split] // self.shard_size)

    def range(self, split: str, shard: int) -> range:
        """The examples of a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.lengths[split]))


def differences(old: Plan, new: Plan) -> list[str]:
    """ "name: old, now new" of two plans, options of the transform one by one."""
    a, b = (dataclasses.asdict(plan) for plan in (old, new))
    for plan in (a, b):
        for name in ("transform", "sources", "lengths"):
            plan |= {f"{name}.{key}": v for key, v in plan.pop(name).items()}
    return [
        f"{name}: {a.get(name)!r} in the cache, now {b.get(name)!r}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def read_plan(path: str | Path) -> Plan:
    """The plan of a cache. UserError for a folder that is not one."""
    if not str(path):
        raise UserError(f"config.data.path is empty: give a latents cache; {HOW}")
    file = Path(path).expanduser() / PLAN
    try:
        return Plan(**json.loads(file.read_text()))
    except OSError:
        text = f"{path} is not a latents cache: it has no {PLAN}; {HOW}"
        raise UserError(text) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def write_plan(path: Path, plan: Plan) -> None:
    """Start or continue a cache, in any process; UserError if its plan is another."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / PLAN).exists():
        text = json.dumps(dataclasses.asdict(plan), indent=1) + "\n"
        with replacing(path / PLAN, shared=True) as partial_file:
            partial_file.write_text(text)
    different = differences(read_plan(path), plan)
    if different:
        raise UserError(
            f"{path} was begun with other settings ({'; '.join(different)}): choose "
            "another --out, or remove it"
        )


def shard_folder(path: Path, split: str, shard: int) -> Path:
    """The folder of a shard, once it is whole."""
    return path / split / f"{shard:05d}"


def write_shard(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write "n copies ..." arrays atomically; none if the shard has no examples."""
    with replacing(folder) as partial_folder:
        partial_folder.mkdir(parents=True)
        for name, values in arrays.items():
            if values.dtype == ml_dtypes.bfloat16:
                values = values.view(np.uint16)
            with open(partial_folder / f"{name}.npy", "wb") as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())


class LatentsSource:
    """The examples of a cache: {key: "copies ..."}; `Pick` makes batch rows of them.

    path, split: as everywhere; `plan` describes the cache. UserError for a folder that
    is not a cache, a split that was not encoded, and shards that are missing.
    """

    def __init__(self, path: str | Path, *, split: str = "train"):
        self._remake = partial(LatentsSource, path, split=split)
        self.plan, self.split = read_plan(path), split
        self.path = Path(path).expanduser()
        if split not in SPLITS or split not in self.plan.lengths:
            valid = ", ".join(self.plan.lengths)
            raise UserError(f"{path} holds no split {split!r}; it has {valid}")
        count = self.plan.num_shards(split)
        self._folders = [shard_folder(self.path, split, i) for i in range(count)]
        missing = sum(not folder.is_dir() for folder in self._folders)
        if missing:
            raise UserError(
                f"{path} is not whole: {missing} of {count} shards of {split!r} are "
                "missing; run the command that began it again"
            )
        self._open: dict[int, dict[str, np.ndarray]] = {}
        self._ends = np.cumsum([self._length(i) for i in range(count)])

    def _length(self, shard: int) -> int:
        file = self._folders[shard] / "moments.npy"
        return len(np.load(file, mmap_mode="r")) if file.exists() else 0

    def _arrays(self, shard: int) -> dict[str, np.ndarray]:
        if shard not in self._open:
            files = sorted(self._folders[shard].glob("*.npy"))
            self._open[shard] = {f.stem: np.load(f, mmap_mode="r") for f in files}
        return self._open[shard]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        row = i - int(self._ends[shard])  # from the end
        return {key: values[row] for key, values in self._arrays(shard).items()}

    @property
    def num_classes(self) -> int:
        """How many classes the labels take; 0 without labels."""
        return self.plan.num_classes

    @property
    def classes(self) -> list[str]:
        """The names of the labels, by number; none without names."""
        return list(self.plan.classes)

    @property
    def categories(self) -> list[str]:
        """The same where the labels are boxes'."""
        return self.classes

    @property
    def fingerprint(self) -> str:
        """Hash of the plan and the split, in hexadecimal."""
        text = json.dumps([dataclasses.asdict(self.plan), self.split], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __reduce__(self):
        return self._remake, ()


@dataclasses.dataclass(frozen=True)
class Copies:
    """Source example -> the copies that a cache holds: {key: "copies ..."}.

    plain, mirrored: the transform without and with mirroring; mirrored may be None.
    A draw has a generator of its own, the same for both.
    """

    plain: Transform
    mirrored: Transform | None = None
    draws: int = 1

    def __call__(self, example: Example, rng: Generator) -> Example:
        rows = []
        for seed in rng.integers(2**63, size=self.draws):
            for transform in (self.plain, self.mirrored):
                if transform is not None:
                    rows.append(transform(example, np.random.default_rng(int(seed))))
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


@dataclasses.dataclass(frozen=True)
class Pick:
    """Copies -> a batch row, halves as f32: any draw, mirrored with chance `flip`."""

    flip: float = 0.0
    draws: int = 1
    mirrored: bool = False

    def __post_init__(self):
        if self.flip and not self.mirrored:
            raise UserError(
                f"config.data.flip = {self.flip}, but the latents hold no mirror "
                "images; encode them with this config, or set it to 0"
            )

    def __call__(self, example: Example, rng: Generator) -> Example:
        copy = int(rng.integers(self.draws)) if self.draws > 1 else 0
        if self.mirrored:
            copy = 2 * copy + int(self.flip > 0 and rng.random() < self.flip)
        return {key: _in_f32(values[copy]) for key, values in example.items()}


def _in_f32(value: np.ndarray) -> np.ndarray:
    if value.dtype == np.uint16:
        value = np.asarray(value).view(ml_dtypes.bfloat16)
    return np.asarray(value, None if value.dtype.kind in "iu" else np.float32)
