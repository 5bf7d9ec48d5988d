"""Torch files for the tests of their reader, written opcode by opcode, and its errors.

`one_entry` is the pickle of a state dict, `call` what a hostile one hides; the writers
put a pickle into each of torch's containers.
"""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.weights import torch_file
from tests.reference import rule

FOLDER = rule.FOLDER / "torch"
STOP = b"."


def value(item) -> bytes:
    """The opcodes that push a plain value (pickle protocol 2)."""
    return pickle.dumps(item, protocol=2)[2:-1]


def tensor(
    *, kind="FloatStorage", key="0", numel=4, offset=0, shape=(4,), strides=(1,)
) -> bytes:
    """The opcodes by which torch describes a tensor."""
    storage = value("storage") + f"ctorch\n{kind}\n".encode()
    storage += value(key) + value("cpu") + value(numel)
    view = value(offset) + value(shape) + value(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + storage
        + b"tQ"
        + view
        + hooks
        + (b"tR")
    )


def one_entry(**description) -> bytes:
    """The pickle of {"a": tensor}."""
    return b"\x80\x02}" + value("a") + tensor(**description) + b"s" + STOP


def call(function: str, argument: str) -> bytes:
    """The opcodes of function(argument): what a hostile file hides."""
    module, _, name = function.rpartition(".")
    return f"c{module}\n{name}\n(".encode() + value(argument) + b"tR"


def write_zip(path: Path, content: bytes, *, compress=zipfile.ZIP_STORED, **storages):
    """A torch archive with that data.pkl; storage "0" holds 1 2 3 4 unless given."""
    storages = storages or {"0": np.arange(1, 5, dtype="<f4").tobytes()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", b"little")
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key}", numbers)
    return path


def write_stacked(path: Path, content: bytes, keys=("0",)) -> Path:
    """The older format, with four numbers in every storage."""
    system = {"little_endian": True}
    head = (torch_file.MAGIC, torch_file.PROTOCOL, system)
    parts = [pickle.dumps(part, protocol=2) for part in head]
    parts += [content, pickle.dumps(list(keys), protocol=2)]
    for _ in keys:
        parts += [struct.pack("<q", 4), np.arange(1, 5, dtype="<f4").tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def write_plain(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


WRITERS = {"zip": write_zip, "stacked": write_stacked, "plain": write_plain}


def refusal(path: Path) -> str:
    """The one-line error of reading `path`."""
    with pytest.raises(UserError) as error:
        torch_file.read(path)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700 and message.isprintable()
    return message.removeprefix(str(path)).strip()
