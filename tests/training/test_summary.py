"""The dry run: memory against arrays that lie on devices, FLOPs against others'."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import (
    celebahq_ldm4,
    emoji,
    imagenet_class_ldm4,
    kl_f8,
    places_inpaint_ldm4,
)
from lDM_jax.core.errors import UserError
from lDM_jax.core.sharding import make_mesh, state_sharding
from lDM_jax.diffusion import latent_diffusion
from lDM_jax.diffusion.process import Process
from lDM_jax.from_config import networks
from lDM_jax.models.autoencoder import Identity
from lDM_jax.models.conditioners import Conditioner
from lDM_jax.models.unet import UNet
from lDM_jax.training import diffusion as stage2
from lDM_jax.training import flops
from lDM_jax.training.summary import (
    bytes_a_device,
    figures_of,
    planned_mesh,
    summary,
)


def passes_of(config) -> dict:
    passes = figures_of(config).passes
    return {name: (times, count) for name, times, count in passes}


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4), (1, 8)])
def test_memory_is_what_the_devices_hold(data, fsdp):
    """The same state put on eight devices by the loop's rule, counted on one."""
    abstract = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32),
        "odd": jax.ShapeDtypeStruct((257, 257), jnp.float32),
        "small": jax.ShapeDtypeStruct((64,), jnp.bfloat16),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    mesh = make_mesh(data, fsdp)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    placed = jax.device_put(zeros, state_sharding(mesh, abstract))
    first = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(placed)
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    planned = planned_mesh(ConfigDict(dict(data=data, fsdp=fsdp)))
    assert bytes_a_device(abstract, planned) == held


def test_the_planned_mesh_needs_no_devices():
    """A config for a pod is summarised on a laptop; -1 fills this machine."""
    assert planned_mesh(ConfigDict(dict(data=-1, fsdp=64))).shape["fsdp"] == 64
    assert planned_mesh(ConfigDict(dict(data=2, fsdp=-1))).shape["fsdp"] == 4
    for sizes in (dict(data=-1, fsdp=-1), dict(data=0, fsdp=2), dict(data=-2, fsdp=1)):
        with pytest.raises(UserError, match="config.mesh"):
            planned_mesh(ConfigDict(sizes))


def test_training_costs_three_forward_passes():
    """The jaxpr of the real step holds them, and what the rule leaves out is small.

    One level, since a gradient of a strided convolution counts the holes it skips.
    """
    unet = UNet(3, 64, (1,), 2, (1,), num_heads=4)
    model = latent_diffusion.LatentDiffusion(
        unet, Conditioner(), Process.discrete(), networks.Codec(Identity())
    )
    image = np.zeros((1, 8, 8, 3), np.float32)
    stage = stage2.DiffusionStage(
        model,
        optax.sgd(1.0),
        conditions={},
        latent_shape=(8, 8, 3),
    )
    key = jax.random.key(0)
    state = jax.eval_shape(stage.init, key)
    frozen, batch = {"first_stage": {}}, {"image": image}
    step = flops.count(stage.step, state, frozen, batch, key)
    t = jnp.zeros(1, jnp.int32)
    forward = flops.count(unet.apply, state.params["unet"], jnp.asarray(image), t)
    # The first convolution has no gradient by its input.
    assert 0.98 * 3 * forward < step <= 3 * forward


@pytest.mark.slow
def test_flops_of_a_published_unet():
    """103.6 billion multiply-adds: arXiv 2212.09748, section 5.1, of LDM-4."""
    found = passes_of(imagenet_class_ldm4.get_config())
    times, count = found["UNet"]
    assert times == 3 and count == pytest.approx(2 * 103.6e9, rel=0.01)


def test_what_is_frozen_passes_once():
    inpaint, plain = (
        passes_of(module.get_config("smoke"))
        for module in (places_inpaint_ldm4, celebahq_ldm4)
    )
    assert inpaint["first stage's encoder"][0] == 2  # picture and masked picture
    assert plain["first stage's encoder"][0] == 1
    assert set(plain) == {"UNet", "first stage's encoder"}
    cached = passes_of(emoji.get_config("smoke"))
    assert set(cached) == {"UNet", "conditioner"}


def test_the_discriminator_and_lpips_count():
    """VGG16 has 15.35 billion multiply-adds at 224 px without its dense layers."""
    config = kl_f8.get_config()
    found = passes_of(config)
    times, count = found["LPIPS"]
    assert times == 3
    assert count == pytest.approx(2 * 15.35e9 * (256 / 224) ** 2, rel=0.01)
    assert found["discriminator"][0] == 7
    with config.unlocked():
        config.loss.perceptual_weight = config.discriminator.factor = 0.0
    assert set(passes_of(config)) == {"autoencoder"}


@pytest.mark.parametrize("config", [imagenet_class_ldm4, kl_f8])
def test_one_screen(config):
    lines = summary(config.get_config("smoke")).splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 88
    assert any(line.startswith("training FLOPs an image") for line in lines)


def test_the_mesh_is_read():
    config = emoji.get_config("smoke")
    config.mesh.fsdp = 4
    assert "fsdp=4" in summary(config)
