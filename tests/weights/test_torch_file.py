"""Reading torch files without torch: the right numbers; damage is a plain error.

tests/reference/torch holds files that torch wrote and the arrays that torch reads from
them; the live tests write others. Comparisons are exact. What pickles may ask for is
the affair of test_torch_pickle.
"""

import json
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.weights import torch_file
from tests.reference import rule, toy
from tests.torch_files import (
    FOLDER,
    one_entry,
    refusal,
    write_plain,
    write_stacked,
    write_zip,
)


@pytest.mark.parametrize("name", ["zip.pt", "stacked.pt"])
def test_recorded_files(name):
    theirs = rule.read_arrays(FOLDER / "entries.npz")
    ours = torch_file.read(FOLDER / name)
    assert list(ours) == list(theirs) and len(ours) == len(theirs)
    assert ours.shapes == {name: array.shape for name, array in theirs.items()}
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype
        assert ours[name].flags.c_contiguous and ours[name].flags.writeable
        np.testing.assert_array_equal(ours[name], expected)


def test_state_dict_of_a_training_checkpoint():
    """The optimizer, the callbacks and their classes around it do not matter."""
    ours = torch_file.read(FOLDER / "toy_kl.ckpt")
    assert ours.shapes == {n: array.shape for n, array in toy.state_dict().items()}
    for name, expected in toy.state_dict().items():
        np.testing.assert_array_equal(ours[name], expected)


@pytest.mark.live
@pytest.mark.parametrize("stacked", [False, True])
def test_live(stacked, tmp_path):
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    from tests.reference import record_torch

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5))
    found = record_torch.entries() | model.state_dict() | {"u": torch.arange(9).short()}
    if not stacked:
        found["wide"] = torch.arange(3).to(torch.uint32)
    path = tmp_path / "live.pt"
    torch.save(found, path, _use_new_zipfile_serialization=not stacked)
    ours = torch_file.read(path)
    assert list(ours) == list(found)
    for name, theirs in found.items():
        np.testing.assert_array_equal(ours[name], record_torch.plain(theirs))


@pytest.mark.live
def test_live_without_checksums_and_whole_models(tmp_path):
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    path = tmp_path / "live.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(torch_file.read(path)["a"], [0.0, 1.0, 2.0])
    torch.save(torch.nn.Linear(2, 2), path)
    assert refusal(path) == "holds no state dict (names -> tensors)"
    torch.save({"state_dict": {"a": torch.ones(1), "b": np.ones(2)}}, path)
    assert refusal(path) == "holds no state dict: not tensors are b"


@pytest.mark.live
def test_live_safetensors(tmp_path):
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    from safetensors.torch import save_file

    from tests.reference import record_torch

    found = {n: t.detach().clone() for n, t in record_torch.entries().items()}
    found = {name: array.contiguous() for name, array in found.items()}
    assert any(array.dtype is torch.bfloat16 for array in found.values())
    save_file(found, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = torch_file.read(tmp_path / "model.safetensors")
    assert ours.keys() == found.keys()
    for name, theirs in found.items():
        np.testing.assert_array_equal(ours[name], record_torch.plain(theirs))


def test_big_endian_archive(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", one_entry())
        archive.writestr("byteorder", b"big")
        archive.writestr("data/0", np.arange(1, 5, dtype=">f4").tobytes())
    np.testing.assert_array_equal(torch_file.read(path)["a"], [1, 2, 3, 4])


@pytest.mark.parametrize(
    "description, reason",
    [
        (dict(shape=(2**40,), strides=(0,)), "1099511627776 numbers where only 4"),
        (dict(shape=(2**40,), numel=2**40), "1099511627776 numbers where only 4"),
        (dict(shape=(2**62, 2**62), strides=(0, 0)), "impossible place or shape"),
        (dict(shape=(0, 2**43), strides=(1, 1)), "8796093022208 numbers"),
        (dict(shape=(5,)), "5 numbers where only 4"),
        (dict(offset=1), "reach beyond the 4 numbers"),
        (dict(shape=(2,), strides=(4,)), "reach beyond the 4 numbers"),
        (dict(offset=-1), "impossible place or shape"),
        (dict(strides=(-1,)), "impossible place or shape"),
        (dict(shape=(-4,)), "impossible place or shape"),
        (dict(shape=(2.0,)), "impossible place or shape"),
        (dict(shape=(True,)), "impossible place or shape"),
        (dict(shape=("4",)), "impossible place or shape"),
        (dict(shape=(2, 2)), "impossible shape"),
        (dict(shape=(1,) * 65, strides=(1,) * 65), "a tensor whose shape is none"),
        (dict(shape=(1,) * 33, strides=(1,) * 33), "impossible shape"),
        (dict(kind="QInt8Storage"), "unknown element type QInt8Storage"),
        (dict(key="1"), "it has no data/1"),
        (dict(kind="DoubleStorage"), "4 numbers where only 2"),
    ],
)
def test_impossible_tensors(description, reason, tmp_path):
    path = write_zip(tmp_path / "model.pt", one_entry(**description))
    assert reason in refusal(path)


def test_compressed_entries_are_refused(tmp_path):
    zeros = np.zeros(10**6, "<f4").tobytes()
    content = one_entry(numel=10**6, shape=(10**6,))
    path = tmp_path / "bomb.pt"
    write_zip(path, content, compress=zipfile.ZIP_DEFLATED, **{"0": zeros})
    assert path.stat().st_size < len(zeros) / 100
    assert "compressed entry archive/data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", zeros, zipfile.ZIP_DEFLATED)
    assert "compressed entry archive/data/0" in refusal(path)


def test_what_is_no_checkpoint(tmp_path):
    path = tmp_path / "file"
    for content, reason in (
        (b"", "is empty"),
        (b"GIF89a", "is neither a torch file nor safetensors"),
        (b"PK\x03\x04 and more", "is a damaged zip archive"),
        (pickle.dumps({"a": 1}, 2), "is a pickle but no torch file"),
        (pickle.dumps(torch_file.MAGIC, 2) + pickle.dumps(7, 2), "another protocol"),
    ):
        assert reason in refusal(write_plain(path, content))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", b"")
    assert "0 data.pkl instead of one" in refusal(path)
    assert "cannot be read: No such file" in refusal(tmp_path / "absent")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    write_stacked(path, one_entry(key="1"), keys=("0",))
    assert "holds a storage of an unknown kind" in refusal(path)
    write_stacked(path, one_entry(), keys=())
    assert "it has no storage 0" in refusal(path)


def test_a_damaged_storage_is_noticed(tmp_path):
    path = write_zip(tmp_path / "model.pt", one_entry())
    data = path.read_bytes()
    numbers = np.arange(1, 5, dtype="<f4").tobytes()
    assert data.count(numbers) == 1
    path.write_bytes(data.replace(numbers, numbers[::-1]))
    with pytest.raises(UserError, match="a is damaged .its checksum differs"):
        torch_file.read(path)["a"]


@pytest.mark.parametrize("name", ["zip.pt", "stacked.pt"])
def test_any_damage_is_a_user_error_or_harmless(name, tmp_path):
    """Truncations and changed bytes: an error of one line, or some numbers."""
    whole, path, rng = (FOLDER / name).read_bytes(), tmp_path / name, random.Random(0)
    refused = 0
    for trial in range(400):
        data = bytearray(whole)
        if trial % 4 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice((1, 1, 3))):
                data[rng.randrange(len(data))] = rng.choice((0, 1, 46, 82, 127, 255))
        path.write_bytes(data)
        try:
            found = torch_file.read(path)
            assert sum(array.nbytes for array in found.values()) < 10_000
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 150


def header(entries, *, numbers: int = 16) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(numbers)


def entry(dtype="F32", shape=(2, 2), data_offsets=(0, 16)) -> dict:
    return {"a": dict(dtype=dtype, shape=shape, data_offsets=data_offsets)}


@pytest.mark.parametrize(
    "entries, reason",
    [
        (entry(shape=(2, 3)), "6 numbers where only 4"),
        (entry(shape=(2,)), "more room than its shape needs"),
        (entry(shape=(2**44, 2**44)), "numbers where only 4"),
        (entry(shape=(-2, -2)), "impossible place or shape"),
        (entry(shape=4), "impossible place or shape"),
        (entry(shape=[[4]]), "impossible place or shape"),
        (entry(data_offsets=(0, 32)), "is truncated"),
        (entry(data_offsets=(16, 0)), "is truncated"),
        (entry(data_offsets=(0, 8, 16)), "impossible place or shape"),
        (entry(data_offsets=7), "damaged safetensors header"),
        (entry(dtype="F8_E4M3"), "unknown element type F8_E4M3"),
        (entry(dtype=["F32"]), "unknown element type"),
        ({"a": {}}, "damaged safetensors header"),
        ({"a": 1}, "damaged safetensors header"),
        (b'{"a": ' + b"[" * 50_000, "damaged safetensors header"),
        (b"{not json", "damaged safetensors header"),
        (b"{\xff\xfe", "damaged safetensors header"),
    ],
)
def test_damaged_safetensors(entries, reason, tmp_path):
    path = write_plain(tmp_path / "model.safetensors", header(entries))
    assert reason in refusal(path)


def test_only_what_is_asked_for_is_read(tmp_path):
    """A sparse file of 64 GB, which no memory here would hold: one small array."""
    size = 2**36
    entries = {
        "large": dict(dtype="F32", shape=[size // 4], data_offsets=[0, size]),
        "small": dict(dtype="F32", shape=[2], data_offsets=[size, size + 8]),
    }
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(header(entries, numbers=0))
        file.seek(size, 1)
        file.write(np.array([1.5, -2.0], "<f4").tobytes())
    found = torch_file.read(path)
    assert found.shapes == {"large": (2**34,), "small": (2,)}
    np.testing.assert_array_equal(found["small"], [1.5, -2.0])
