"""Converted second stages as files: back to the original program, memory, shards.

The small recorded models go there and back bit for bit; hollow files of 2.6 and 6.2 GB
measure what a conversion holds.
"""

import json
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict

from lDM_jax.core.errors import UserError
from lDM_jax.interop.original import read as from_original
from lDM_jax.weights import directory as weights_directory
from lDM_jax.weights import torch_file
from tests.interop.converting import (
    TARGET,
    celeba,
    only_used,
    opened,
    recorded,
    refusal,
    released_state,
    run,
    written,
)
from tests.reference import released


@pytest.mark.parametrize(
    "folder",
    [
        "ldm_celeba",
        pytest.param("ldm_semantic", marks=pytest.mark.slow),
        pytest.param("ldm_churches", marks=pytest.mark.slow),
        pytest.param("ldm_cin_f8_head", marks=pytest.mark.slow),
        pytest.param("ldm_txt2img", marks=pytest.mark.slow),
        pytest.param("ldm_sr", marks=pytest.mark.slow),
    ],
)
def test_back_to_the_original(folder, tmp_path, capsys):
    """--to original: the trained entries bit for bit, and the same model once more."""
    text, state = recorded(folder)
    heads = ("--heads", "head", "--weights", "raw")
    assert run(*written(tmp_path, text, state), *heads) == 0
    back = tmp_path / "back"
    assert run("--to", "original", back, "--model", tmp_path / "out") == 0
    found = torch_file.read(back / "model.safetensors")
    kept = ("model.", "first_stage_model.", "cond_stage_model.")
    same = {n for n in state if n.startswith(kept) and "to_logits" not in n}
    assert found.keys() == same | set(from_original.SCHEDULE)
    for name in same:
        np.testing.assert_array_equal(found[name], state[name])
    flags = "--checkpoint", back / "model.safetensors", "--config", back / "config.yaml"
    assert run(*flags, "--out", tmp_path / "again") == 0
    for inner in ("", "first_stage"):
        before = weights_directory.load(tmp_path / "out" / inner)
        after = weights_directory.load(tmp_path / "again" / inner)
        assert after[0] == before[0]
        jax.tree.map(np.testing.assert_array_equal, after[1], before[1])


def test_a_first_stage_back_to_the_original(tmp_path, capsys):
    """The shipped one has other norms than the original; a converted one returns."""
    flags = "--to", "original", tmp_path / "x", "--model", "emoji_kl_f8"
    assert "norms have 32 groups, this network's 8" in refusal(capsys, *flags)
    model, state = celeba()
    state = only_used(state)
    assert run(*written(tmp_path, yaml.safe_dump(model), state)) == 0
    inner = tmp_path / "out" / "first_stage"
    assert run("--to", "original", tmp_path / "x", "--model", inner) == 0
    found = torch_file.read(tmp_path / "x" / "model.safetensors")
    prefix = "first_stage_model."
    assert {prefix + name for name in found} == {
        n for n in state if n.startswith(prefix)
    }
    for name in found:
        np.testing.assert_array_equal(found[name], state[prefix + name])
    model = yaml.safe_load((tmp_path / "x" / "config.yaml").read_text())["model"]
    assert model["target"] == "ldm.models.autoencoder.VQModel"


# Memory.
MEASURED = """
import resource, sys
from lDM_jax.tools import convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = convert.main(sys.argv[1:])
print(code, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_hollow(path, shapes: dict) -> int:
    """A safetensors file of zeros that takes no room on the disk; its size."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = dict(
            dtype="F32", shape=shape, data_offsets=[offset, offset + size]
        )
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return offset


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, flags, read, stored, bound",
    [
        # 329M parameters, the UNet's also averaged; the largest array has 38 MB.
        ("celeba256", (), 2.4e9, 1.31e9, 400e6),
        # 1.54B; the token embedding has 156 MB.
        ("txt2img-1p4B", ("--half",), 6.1e9, 2.99e9, 1e9),
    ],
    ids=["celeba256", "text"],
)
def test_memory_of_a_conversion(model, flags, read, stored, bound, tmp_path):
    """One array at a time is held.

    Above what the imports take the program may hold the largest array a few times over
    (as read, turned, checked and written), not the file. -s shows the numbers.
    """
    state = released_state(model)
    shapes = {n: a.shape for n, a in state.items() if n not in from_original.SCHEDULE}
    size = write_hollow(tmp_path / "model.safetensors", shapes)
    settings = {"model": {"target": TARGET, "params": released.params(model)}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(settings))
    flags += "--checkpoint", tmp_path / "model.safetensors", "--config"
    flags += tmp_path / "model.yaml", "--out", tmp_path / "out"
    program = [sys.executable, "-c", MEASURED, *map(str, flags)]
    start = time.perf_counter()
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    code, before, peak = map(int, done.stdout.splitlines()[-1].split())
    files = list((tmp_path / "out").rglob("*.safetensors"))
    count = sum(file.stat().st_size for file in files)
    shutil.rmtree(tmp_path / "out")  # pytest would keep the gigabytes
    print(
        f"{model}: {size / 1e9:.2f} GB -> {count / 1e9:.2f} GB in {seconds:.0f} s; "
        f"peak {peak * 1024 / 1e9:.2f} GB, the imports {before * 1024 / 1e9:.2f} GB"
    )
    assert code == 0 and size > read and count > stored
    assert (peak - before) * 1024 < bound


def test_several_files(tmp_path, monkeypatch, capsys):
    """Beyond a file's limit there is an index, and the loader takes all of them."""
    model, state = celeba()
    flags = written(tmp_path, yaml.safe_dump(model), only_used(state))
    assert run(*flags) == 0
    monkeypatch.setattr(weights_directory, "FILE_BYTES", 2_000_000)
    assert run(*flags[:-1], tmp_path / "cut") == 0
    files = sorted(path.name for path in (tmp_path / "cut").glob("weights-*"))
    count = len(files)
    assert files[0] == f"weights-00001-of-{count:05d}.safetensors" and count > 5
    largest = max(array.nbytes for array in state.values())
    for name in files:
        assert (tmp_path / "cut" / name).stat().st_size < 2_000_000 + largest
    whole, cut = (weights_directory.load(tmp_path / name) for name in ("out", "cut"))
    assert whole[0] == cut[0]
    jax.tree.map(np.testing.assert_array_equal, cut[1], whole[1])
    lazy = weights_directory.open_lazily(tmp_path / "cut")[1]
    assert {path: array.shape for path, array in lazy.items()} == {
        path: leaf.shape for path, leaf in flatten_dict(whole[1]).items()
    }
    opened(tmp_path / "cut")
    (tmp_path / "cut" / files[1]).unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        weights_directory.load(tmp_path / "cut")
