"""Many pictures for evaluation: sharded, resumable, one npz at the end.

    arr_0  uint8 "n H W 3"       what the field's evaluators read (ADM's format)
    arr_1  i32 "n"               the labels, for class-conditional models

Picture i has seed `first + i` and, with classes, label i mod num_classes. Pictures are
drawn in parts of a few batches; a part is written whole or not at all, so that the same
command continues after a kill. A host's devices share a batch, hosts share the parts,
and the first joins them when all are there, reading one part at a time.
"""

import dataclasses
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from lDM_jax.core.distributed import is_first, together
from lDM_jax.core.errors import UserError
from lDM_jax.core.files import replacing, write_json
from lDM_jax.core.sharding import batch_sharding, make_mesh, replicated
from lDM_jax.sampling.pipeline import Pipeline
from lDM_jax.sampling.request import Request

PART = 256


def row_request(
    request: Request, index: int, num_classes: int, prompts: Sequence[str] = ()
) -> Request:
    """The request of picture `index`: its own seed, and its label or its prompt."""
    changes = {"seeds": (request.seeds[0] + index,)}
    if prompts:
        changes["prompt"] = prompts[index % len(prompts)]
    if num_classes and request.label is None:
        changes["label"] = index % num_classes
    return dataclasses.replace(request, **changes)


def check(pipe: Pipeline, request: Request) -> int:
    """The number of classes to draw in turn, 0 for none.

    UserError for requests that one batch cannot hold, or that are wrong by themselves.
    """
    if request.regions or (request.image is not None and not pipe.task.own_image):
        raise UserError("many pictures are drawn without regions and from noise")
    if request.autoguidance != 1 or request.target is not None:
        raise UserError("many pictures are drawn without autoguidance and targets")
    if len(request.seeds) != 1:
        raise UserError(f"give the first seed only, not {len(request.seeds)}")
    in_turn = pipe.task.draws_from == "classes" and request.label is None
    return pipe.config.num_classes if in_turn else 0


def parts(count: int) -> list[range]:
    """The indices 0 .. count - 1 in parts."""
    return [range(start, min(start + PART, count)) for start in range(0, count, PART)]


def generate(
    pipe: Pipeline,
    request: Request,
    count: int,
    path: str | Path,
    *,
    batch_size: int,
    prompts: Sequence[str] = (),
) -> Iterator[int]:
    """Draw `count` pictures into the npz `path`; yields how many a step has finished.

    request: with the first seed; without a label every class in turn. prompts: drawn in
    turn in place of the request's. The parts lie in `path`.parts until the end.
    UserError if `path` exists, or if the parts there are of another request.
    """
    path = Path(path)
    folder = path.with_name(path.name + ".parts")
    if path.exists():
        raise UserError(f"{path} exists already: give a new file")
    classes = check(pipe, request)
    first = pipe.prepare(row_request(request, 0, classes, prompts))
    unset = {"label": None} if classes else {}
    request = dataclasses.replace(first.preset, **unset)
    mesh = make_mesh(devices=jax.local_devices())  # hosts draw parts of their own
    if batch_size % mesh.size:
        raise UserError(
            f"a batch of {batch_size} does not split over {mesh.size} devices"
        )
    text = json.dumps(list(prompts)).encode()
    digest = {"prompts": hashlib.sha256(text).hexdigest()} if prompts else {}
    stored = dataclasses.replace(first.request, **unset).record()
    record = {"count": count, **digest, **stored}
    with together("preparing the parts"):
        if is_first():
            prepare(folder, record)
    pipe.place(replicated(mesh))
    with together("drawing"):
        for number, indices in enumerate(parts(count)):
            file = folder / f"{number:06d}.npy"
            if number % jax.process_count() != jax.process_index():
                continue
            if not file.exists():
                rows = [row_request(request, i, classes, prompts) for i in indices]
                write_part(file, draw(pipe, rows, batch_size, batch_sharding(mesh)))
            yield len(indices)
    with together("joining the parts"):
        if is_first():
            labels = np.arange(count, dtype=np.int32) % classes if classes else None
            join(folder, path, count, labels)
            shutil.rmtree(folder)


def draw(pipe: Pipeline, rows: list[Request], batch_size: int, sharding) -> np.ndarray:
    """uint8 "n H W 3" of resolved one-seed requests, the last batch padded."""
    pictures = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        padded = batch + [batch[-1]] * (batch_size - len(batch))
        pictures.append(pipe.each(padded, sharding=sharding)[: len(batch)])
    return np.concatenate(pictures)


def prepare(folder: Path, record: dict) -> None:
    """The folder of parts, new or of the same request."""
    file = folder / "request.json"
    if file.exists():
        if json.loads(file.read_text()) != json.loads(json.dumps(record)):
            raise UserError(f"{folder} holds parts of another request: remove it first")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, record)


def write_part(file: Path, pictures: np.ndarray) -> None:
    """Write atomically."""
    with replacing(file) as partial, open(partial, "wb") as stream:
        np.save(stream, pictures)


def join(folder: Path, path: Path, count: int, labels: np.ndarray | None) -> None:
    """All parts as one npz, in memory one at a time."""
    files = [folder / f"{number:06d}.npy" for number in range(len(parts(count)))]
    shape = (count, *np.load(files[0], mmap_mode="r").shape[1:])
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        replacing(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as npz,
    ):
        with npz.open("arr_0.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for file in files:
                stream.write(np.ascontiguousarray(np.load(file)).tobytes())
        if labels is not None:
            with npz.open("arr_1.npy", "w") as stream:
                np.lib.format.write_array(stream, labels)
