"""What the tests of conversions share: the command line, models of the original.

`run` and `refusal` are the converter's; `released_state` is a released model without
memory, `recorded` a small one whose outputs the original program recorded, `celeba` one
of these with changes; `written` makes files of them, `opened` reads what was converted.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from lDM_jax.from_config import networks, older
from lDM_jax.from_config.task_settings import task_of, task_settings
from lDM_jax.interop.original import read as from_original
from lDM_jax.interop.original import settings as original_settings
from lDM_jax.tasks.registry import example_shapes
from lDM_jax.tools import convert as tool
from lDM_jax.weights import directory as weights_directory
from tests.models.test_parity_original import ORIGINAL
from tests.reference import released, rule

TARGET = "ldm.models.diffusion.ddpm.LatentDiffusion"


class Recorded(dict):
    """A state dict of the right shapes, without memory."""

    @property
    def shapes(self):
        return {name: array.shape for name, array in self.items()}


def hollow(shapes) -> Recorded:
    """Zeros of these shapes, by name, without memory."""
    zero = np.zeros((), np.float32)
    return Recorded({n: np.broadcast_to(zero, s) for n, s in shapes.items()})


def run(*flags: object) -> int:
    """The program's exit code."""
    return tool.main([str(flag) for flag in flags])


def refusal(capsys, *flags: object) -> str:
    """The one-line error of the program, which exits with 2 and writes nothing."""
    capsys.readouterr()
    assert run(*flags) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err.removeprefix("convert: error: ").rstrip()


def released_state(model: str) -> dict:
    """The released names and shapes without memory, but with a schedule of numbers."""
    file = f"{released.MODELS[model].states}.tsv.gz"
    state = hollow(rule.read_shapes(rule.FOLDER / "state_dicts" / "whole" / file))
    process = original_settings.process(released.params(model))
    for name, values in from_original.schedule(process).items():
        assert state[name].shape == values.shape
        state[name] = values.astype(np.float32)
    if "scale_factor" in state:
        state["scale_factor"] = np.float32(0.37)
    return state


@functools.cache
def recorded(folder: str) -> tuple[str, dict]:
    """(YAML, whole state dict) of a folder of tests/reference/original.

    The schedule is there where it was recorded, and may be absent elsewhere.
    """
    text = (ORIGINAL / folder / "config.yaml").read_text()
    path = ORIGINAL / folder / "keys.tsv.gz"
    state = {}
    for name, shape, kind in rule.read_entries(path):
        if kind == "param":
            state[name] = rule.weight(name, shape)
        elif kind.startswith("ema:"):
            state[name] = rule.ema_weight(kind.removeprefix("ema:"), shape)
    buffers = ORIGINAL / folder / "buffers.npz"
    return text, state | (rule.read_arrays(buffers) if buffers.is_file() else {})


def written(tmp_path, text: str, state: dict) -> tuple:
    """The flags for a YAML and a state dict, into tmp_path / "out"."""
    (tmp_path / "model.yaml").write_text(text)
    state = {name: np.array(array, order="C") for name, array in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    flags = "--checkpoint", tmp_path / "model.safetensors"
    return *flags, "--config", tmp_path / "model.yaml", "--out", tmp_path / "out"


def abstract_model(config: dict, first: dict | None) -> dict:
    """Shapes of {"unet", "conditioner"} by tracing the model's own init."""
    config = ConfigDict(older.complete(config))
    if first:
        config.first_stage.path, config.first_stage.network = "", first["autoencoder"]
    codec = networks.abstract_codec(config)
    model = networks.model(config, codec)
    side = config.data.size_px // codec.factor
    batch = example_shapes(task_of(config), task_settings(config), rows=1)
    z0 = jax.ShapeDtypeStruct((1, side, side, codec.channels), jnp.float32)
    batch = {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in batch.items()}
    return jax.eval_shape(model.init, jax.random.key(0), batch, z0)


def opened(out):
    """(model, params, frozen) of a converted directory, its parameters checked."""
    config, params = networks.load_trained(str(out))
    codec, codec_params = networks.first_stage(config)
    model = networks.model(config, codec)
    shapes = abstract_model(
        config.to_dict(), weights_directory.read_config(out / "first_stage")
    )
    weights_directory.check_cover(params, shapes, what=str(out))
    return model, params, networks.frozen(config, codec_params)


def celeba(**changes) -> tuple[dict, dict]:
    """The YAML and the state dict of a small model; keys of changes as in `place`."""
    text, state = recorded("ldm_celeba")
    model = yaml.safe_load(text)
    for key, value in changes.items():
        place(model["model"]["params"], key, value)
    return model, dict(state)


def place(values: dict, key: str, value) -> None:
    """Set (or with ... delete) a key of the params: unet__NAME, first__NAME (of the
    first stage), dd__NAME (of its ddconfig), or NAME on top."""
    where, _, name = key.rpartition("__")
    inner = {
        "": lambda v: v,
        "unet": lambda v: v["unet_config"]["params"],
        "first": lambda v: v["first_stage_config"]["params"],
        "dd": lambda v: v["first_stage_config"]["params"]["ddconfig"],
    }[where](values)
    if value is ...:
        del inner[name]
    else:
        inner[name] = value


def only_used(state: dict) -> dict:
    """Without averages and schedule."""
    kept = ("model.", "first_stage_model.")
    return {name: array for name, array in state.items() if name.startswith(kept)}
