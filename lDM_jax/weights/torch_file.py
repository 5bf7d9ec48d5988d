"""Reading weights of other programs without torch, and without trusting the file.

    state_dict = torch_file.read("model.ckpt")      # names -> numpy arrays, when asked

Owns the containers: torch's zip archives, the stacked pickles that torch wrote before
(and still does on request), and safetensors. The kind is told by the content, not by
the name. No pickle is executed (`torch_pickle`), nothing compressed is unpacked, and
every offset and extent is checked before any array is made. An array is read from the
mapped file when it is asked for, so that a checkpoint may exceed the memory.

Every kind of damage or hostility is a UserError of one line.

Reading order: the mapping that is returned, `read`, the three formats, the checks.
"""

import io
import json
import math
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.weights.torch_pickle import (
    BrokenPickle,
    Pickled,
    Storage,
    Tensor,
    interpret,
    suspicious,
)

# Element types: numpy's -> torch's storage class, torch's dtype, safetensors' name.
DTYPES = {
    "<f4": ("FloatStorage", "float32", "F32"),
    "<f8": ("DoubleStorage", "float64", "F64"),
    "<f2": ("HalfStorage", "float16", "F16"),
    "<i8": ("LongStorage", "int64", "I64"),
    "<i4": ("IntStorage", "int32", "I32"),
    "<i2": ("ShortStorage", "int16", "I16"),
    "|i1": ("CharStorage", "int8", "I8"),
    "|u1": ("ByteStorage", "uint8", "U8", "UntypedStorage"),
    "|b1": ("BoolStorage", "bool", "BOOL"),
    "<u4": ("uint32", "U32"),
    "<u8": ("uint64", "U64"),
    "<c8": ("ComplexFloatStorage", "complex64", "C64"),
    "<c16": ("ComplexDoubleStorage", "complex128"),
    "<u2": ("uint16", "U16", "BFloat16Storage", "bfloat16", "BF16"),
}
# numpy has no bfloat16: these are read as their bits and widened to f32.
BFLOAT16 = DTYPES["<u2"][2:]
KINDS = {kind: dtype for dtype, kinds in DTYPES.items() for kind in kinds}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# The most that a pickle or a header may take: arrays lie outside of both.
HEADER_BYTES = 64 * 2**20


class Span(NamedTuple):
    """A storage in the file: bytes [start, start + size), checksum (0: none)."""

    start: int
    size: int
    crc: int = 0


class View(NamedTuple):
    """A checked tensor: offset and strides in elements of `dtype` inside `span`."""

    span: Span
    dtype: np.dtype
    widen: bool
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile(Mapping):
    """The state dict of a file: names -> arrays, each read when it is asked for.

    shapes: by name, known without reading. bfloat16 becomes f32, all else stays.
    """

    def __init__(self, path: Path, data: mmap.mmap, views: dict[str, View]):
        self.path, self._data, self._views = path, data, views
        self.shapes = {name: view.shape for name, view in views.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        view = self._views[name]
        begin = view.span.start + view.offset * view.dtype.itemsize
        end = begin + _extent(view.shape, view.strides) * view.dtype.itemsize
        raw = memoryview(self._data)[begin:end]
        if len(raw) == view.span.size and view.span.crc not in (0, zlib.crc32(raw)):
            raise UserError(f"{self.path}: {name} is damaged (its checksum differs)")
        array = np.frombuffer(raw, view.dtype)
        strides = [step * view.dtype.itemsize for step in view.strides]
        array = np.lib.stride_tricks.as_strided(array, view.shape, strides)
        if view.widen:
            numbers = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            numbers = array.astype(view.dtype.newbyteorder("="), order="C")
        if hasattr(mmap, "MADV_DONTNEED") and end > begin:
            # Give back the pages that were read: they count as our memory.
            start = begin - begin % mmap.PAGESIZE
            self._data.madvise(mmap.MADV_DONTNEED, start, end - start)
        return numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def read(path: str | os.PathLike) -> TorchFile:
    """The state dict of a file: its top level, or the entry "state_dict" of that.

    Raises UserError for a file that is damaged, hostile, or no state dict of tensors.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                raise UserError(f"{path} is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return TorchFile(path, data, _views(data))
    except (_Refused, BrokenPickle) as error:
        raise UserError(f"{path} {_line(str(error), 500)}") from None


class Shards(Mapping):
    """One state dict in several files: each name, and the file that has it."""

    def __init__(self, files: dict[str, TorchFile]):
        self._files = files
        self.shapes = {name: file.shapes[name] for name, file in files.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_index(path: str | os.PathLike) -> Shards:
    """The state dict of an index, {"weight_map": {name: file beside the index}}.

    Raises UserError for a damaged index, for files that are missing or damaged, and
    unless the index names exactly what its files hold.
    """
    path = Path(path)
    try:
        places = json.loads(path.read_text())["weight_map"]
        named = {name: str(file) for name, file in places.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is no index of weights (no weight_map)") from None
    outside = [file for file in named.values() if Path(file).name != file]
    if outside or not named:
        raise UserError(f"{path} names no files beside it: {outside[:1]}")
    files = {file: read(path.parent / file) for file in sorted(set(named.values()))}
    contents = {(name, file) for file, inner in files.items() for name in inner}
    wrong = sorted(contents ^ set(named.items()))
    if wrong:
        raise UserError(
            f"{path} and its files disagree about {len(wrong)} entries: "
            f"{_line(wrong[0][0], 80)} in {_line(wrong[0][1], 80)}"
        )
    return Shards({name: files[file] for name, file in named.items()})


class _Refused(ValueError):
    """What is wrong with a file; follows its name in a sentence."""


def _line(text: str, limit: int) -> str:
    """Printable text of one line and at most `limit` characters."""
    printable = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in " ".join(text[: 2 * limit].split())
    )
    return printable if len(printable) <= limit else printable[:limit] + ".."


def _views(data: mmap.mmap) -> dict[str, View]:
    """The checked tensors of any known format."""
    if data[:4] == b"PK\x03\x04":
        return _read_zip(data)
    (header,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    if data[8:9] == b"{" and header <= len(data) - 8:
        return _read_safetensors(data, header)
    if data[:1] == b"\x80":
        return _read_stacked(data)
    raise _Refused("is neither a torch file nor safetensors")


def _read_zip(data: mmap.mmap) -> dict[str, View]:
    """torch's zip archive: <name>/data.pkl, /byteorder and /data/<key>, all stored."""
    try:
        with zipfile.ZipFile(data) as archive:
            members = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, OSError, OverflowError) as error:
        raise _Refused(f"is a damaged zip archive: {error}") from None
    except (NotImplementedError, struct.error) as error:
        raise _Refused(f"is a zip archive of an unknown kind: {error}") from None
    roots = [n[:-8] for n in members if f"/{n}".endswith("/data.pkl")]
    if len(roots) != 1:
        raise _Refused(f"is a zip archive with {len(roots)} data.pkl instead of one")
    (root,) = roots
    pickled = _load(io.BytesIO(_content(data, members[f"{root}data.pkl"])))
    order = members.get(f"{root}byteorder")
    big = order is not None and _content(data, order) == b"big"
    tensors = _tensors(pickled)
    spans = {}
    for key in {tensor.storage.key: None for tensor in tensors.values()}:
        if f"{root}data/{key}" not in members:
            raise _Refused(f"is incomplete: it has no data/{key}")
        spans[key] = _span(data, members[f"{root}data/{key}"])
    return {
        name: _check(name, tensor, spans[tensor.storage.key], big=big)
        for name, tensor in tensors.items()
    }


def _span(data: mmap.mmap, info: zipfile.ZipInfo) -> Span:
    """Where the bytes of a stored member lie; refuses compressed ones."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise _Refused(
            f"holds the compressed entry {info.filename}: torch stores without "
            "compression, so this is no checkpoint"
        )
    head = data[info.header_offset : info.header_offset + 30]
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise _Refused(f"is damaged: no entry {info.filename} where it should be")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
    if start + info.file_size > len(data):
        raise _Refused(f"is truncated inside {info.filename}")
    return Span(start, info.file_size, info.CRC)


def _content(data: mmap.mmap, info: zipfile.ZipInfo) -> bytes:
    """The bytes of a small member, checked against its checksum."""
    span = _span(data, info)
    if span.size > HEADER_BYTES:
        raise _Refused(f"has a {info.filename} of {span.size} bytes: too large")
    content = data[span.start : span.start + span.size]
    if span.crc not in (0, zlib.crc32(content)):
        raise _Refused(f"is damaged: the checksum of {info.filename} differs")
    return content


def _read_stacked(data: mmap.mmap) -> dict[str, View]:
    """Five pickles (magic, protocol, system, value, storage keys), then the storages.

    A storage is its number of elements as i64, then these, little-endian.
    """
    stream = io.BytesIO(data[:HEADER_BYTES])
    if _load(stream).value != MAGIC:
        raise _Refused("is a pickle but no torch file: give one that torch.save wrote")
    if _load(stream).value != PROTOCOL:
        raise _Refused(f"is a torch file of another protocol than {PROTOCOL}")
    _load(stream)
    pickled, keys = _load(stream), _load(stream).value
    tensors = _tensors(pickled)
    spans = _stacked_spans(data, stream.tell(), keys, pickled.storages)
    absent = sorted({tensor.storage.key for tensor in tensors.values()} - spans.keys())
    if absent:
        raise _Refused(f"is incomplete: it has no storage {absent[0]}")
    return {
        name: _check(name, tensor, spans[tensor.storage.key])
        for name, tensor in tensors.items()
    }


def _stacked_spans(data: mmap.mmap, start: int, keys, storages) -> dict[str, Span]:
    """Walk over the storages in the order of their keys."""
    spans = {}
    if not isinstance(keys, list):
        raise _Refused("is damaged: no list of storage keys")
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.kind not in KINDS:
            raise _Refused("holds a storage of an unknown kind")
        (numel,) = struct.unpack("<q", data[start : start + 8].ljust(8, b"\xff"))
        size = numel * np.dtype(KINDS[storage.kind]).itemsize
        if numel < 0 or start + 8 + size > len(data):
            raise _Refused("is truncated inside its storages")
        spans[key] = Span(start + 8, size)
        start += 8 + size
    return spans


def _load(stream: io.BytesIO) -> Pickled:
    """One pickle, refused if it mentions what no checkpoint needs."""
    try:
        pickled = interpret(stream)
    except BrokenPickle as error:
        raise _Refused(f"holds a broken pickle: {error}") from None
    bad = suspicious(pickled.globals)
    if bad:
        reason = "no checkpoint needs that. Nothing was executed"
        raise _Refused(f"asks to call {_list(bad)}: {reason}")
    return pickled


def _tensors(pickled: Pickled) -> dict[str, Tensor]:
    """The state dict in a pickled value; all of its entries are tensors."""
    value = pickled.value
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not value:
        raise _Refused("holds no state dict (names -> tensors)")
    others = sorted(k for k, v in value.items() if not isinstance(v, Tensor))
    if others:
        raise _Refused(f"holds no state dict: not tensors are {_list(others)}")
    return value


def _list(names: list[str]) -> str:
    text = ", ".join(_line(name, 80) for name in names[:8])
    return text + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_safetensors(data: mmap.mmap, header: int) -> dict[str, View]:
    """A JSON header {name: {dtype, shape, data_offsets}} before the numbers."""
    if header > HEADER_BYTES:
        raise _Refused(f"has a header of {header} bytes: too large")
    try:
        entries = json.loads(data[8 : 8 + header])
        entries.pop("__metadata__", None)
        fields = {
            name: (entry["dtype"], entry["shape"], *entry["data_offsets"])
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Refused(f"has a damaged safetensors header: {error}") from None
    views, numbers = {}, 8 + header
    for name, (kind, shape, *offsets) in fields.items():
        good = isinstance(shape, list) and len(shape) <= 32 and len(offsets) == 2
        if not good or not _whole([*offsets, *shape]):
            raise _Refused(f"gives {_line(name, 80)} an impossible place or shape")
        begin, end = offsets
        if begin > end or numbers + end > len(data):
            raise _Refused(f"is truncated: {_line(name, 80)} lies beyond its end")
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        tensor = Tensor(Storage(kind, "", 0), kind, 0, tuple(shape), tuple(strides))
        view = _check(name, tensor, Span(numbers + begin, end - begin))
        if math.prod(shape) * view.dtype.itemsize != end - begin:
            raise _Refused(f"gives {_line(name, 80)} more room than its shape needs")
        views[name] = view
    return views


def _whole(numbers) -> bool:
    """True for numbers that can be extents or offsets: integers in [0, 2^44]."""
    return all(type(number) is int and 0 <= number <= 2**44 for number in numbers)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a view, inclusive."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _check(name: str, tensor: Tensor, span: Span, *, big: bool = False) -> View:
    """The view that a description gives, once it is sure to lie in its span."""
    name, shape, strides = _line(name, 80), tensor.shape, tensor.strides
    if not isinstance(tensor.kind, str) or tensor.kind not in KINDS:
        raise _Refused(f"gives {name} the unknown element type {tensor.kind}")
    dtype = np.dtype(KINDS[tensor.kind])
    room = span.size // dtype.itemsize
    if len(shape) != len(strides) or len(shape) > 32:
        raise _Refused(f"gives {name} an impossible shape")
    if not _whole([tensor.offset, *shape, *strides]):
        raise _Refused(f"gives {name} an impossible place or shape")
    # Without the sides of 0: such an array has no numbers, but its shape has limits.
    count = math.prod(side or 1 for side in shape)
    if count > (2**40 if 0 in shape else room):
        raise _Refused(f"gives {name} {count} numbers where only {room} are stored")
    if tensor.offset + _extent(shape, strides) > room:
        raise _Refused(f"lets {name} reach beyond the {room} numbers that are stored")
    dtype = dtype.newbyteorder(">") if big else dtype
    return View(span, dtype, tensor.kind in BFLOAT16, tensor.offset, shape, strides)
