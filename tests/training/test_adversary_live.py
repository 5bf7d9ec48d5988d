"""One whole training step of a first stage beside PyTorch's own computation of it.

The torch side uses diffusers' autoencoders, a PatchGAN of plain torch layers, LPIPS
written out, torch.autograd for the adaptive weight and torch.optim.Adam. Both sides
start from the same weights, images and posterior noise. Adam divides by |g| + eps: with
a usual eps, an element whose gradient is rounding noise would move by a full step in a
random direction, so eps is set to the gradients' scale.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    pytest.importorskip("diffusers", reason="needs requirements-dev.txt")
    from diffusers import VQModel

    from tests.reference.record_diffusers import build

from lDM_jax.core import rng
from lDM_jax.interop import names as name_tables
from lDM_jax.models.autoencoder import Autoencoder
from lDM_jax.models.discriminator import PatchDiscriminator
from lDM_jax.models.lpips import LPIPS
from lDM_jax.training import autoencoder as stage1
from lDM_jax.training.adversary import Adversary, Player
from lDM_jax.weights.name_maps import from_original, to_original
from tests.reference import rule

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

NETWORKS = {
    "kl": Autoencoder(32, (1, 2), 1, 4, 4),
    "vq": Autoencoder(32, (1, 2), 1, 3, 5, num_codes=32, attn_factors=(2,)),
}
EPS = {"kl": 1.0, "vq": 1e-3}
WIDTHS = ((4,), (6,), (5,))
SIDE, DISC_WEIGHT, DISC_FACTOR, KL_WEIGHT, RATE = 16, 0.6, 0.9, 0.01, 1e-2
KEY = jax.random.key(5)
ROUNDING = 1e-6  # of the player's largest gradient


def torch_first_stage(kind: str):
    """diffusers' twin of NETWORKS[kind]."""
    if kind == "kl":
        return build("kl")
    return VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        num_vq_embeddings=32,
        vq_embed_dim=5,
    ).eval()


def torch_lpips(variables: dict, x, y):
    """Zhang et al. 2018, eq. 1, on a three-layer network."""
    params = variables["params"]
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    total, pictures = 0.0, [(x - shift) / scale, (y - shift) / scale]
    for index in range(len(WIDTHS)):
        conv, head = params[f"convs_{index}"], params[f"heads_{index}"]
        kernel = torch.tensor(conv["kernel"].transpose(3, 2, 0, 1))
        if index:
            pictures = [torch.nn.functional.max_pool2d(p, 2) for p in pictures]
        pictures = [
            torch.relu(
                torch.nn.functional.conv2d(
                    p, kernel, torch.tensor(conv["bias"]), padding=1
                )
            )
            for p in pictures
        ]
        unit = [p / (torch.sqrt((p**2).sum(1, keepdim=True)) + 1e-10) for p in pictures]
        weight = torch.tensor(head["kernel"]).reshape(1, -1, 1, 1)
        total = total + (weight * (unit[0] - unit[1]) ** 2).sum(1).mean((1, 2))
    return total


def torch_patchgan(params: dict):
    """Two halvings are enough for 16 px: conv, conv-norm, conv."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 2, 1),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Conv2d(8, 16, 4, 1, 1, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Conv2d(16, 1, 4, 1, 1),
    )
    model.load_state_dict(patchgan_entries(params), strict=False)
    return model.train()


def patchgan_entries(params: dict) -> dict:
    """Our parameters (or their gradients) under torch's names."""
    places = {"conv_0": "0", "conv_1": "2", "norm_1": "3", "conv_2": "5"}
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    found = {}
    for place, index in places.items():
        for leaf, value in params[place].items():
            value = np.asarray(value)
            value = value.transpose(3, 2, 0, 1) if leaf == "kernel" else value
            found[f"{index}.{leaves[leaf]}"] = torch.tensor(value.copy())
    return found


def drawn(shapes, salt: str) -> dict:
    """Weights for abstract variables, by the rule on their paths."""

    def draw(path, leaf):
        name = salt + jax.tree_util.keystr(path, simple=True, separator="/")
        kind = name.rsplit("/", 1)[-1]
        named = name + ("weight" if kind in ("scale", "kernel") else "")
        value = rule.weight(named, leaf.shape[::-1]).transpose()
        return np.abs(value) if "heads" in name else value

    return jax.tree_util.tree_map_with_path(draw, shapes)


def torch_step(kind, model, disc, lpips_variables, images, noise, *, awake, hinge):
    """What the original's two training steps do, on one forward pass."""
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    optimizers = [
        torch.optim.Adam(m.parameters(), RATE, eps=EPS[kind]) for m in (model, disc)
    ]
    z = model.quant_conv(model.encoder(x))
    if kind == "kl":
        mean, logvar = z.chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        sample = mean + torch.exp(0.5 * logvar) * torch.tensor(noise)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3))
        term = KL_WEIGHT * kl.mean()
    else:
        table = model.quantize.embedding.weight
        rows = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        nearest = torch.cdist(rows, table).argmin(1)
        z_q = table[nearest].reshape(z.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        term = ((z_q - z.detach()) ** 2).mean() + 0.25 * (
            (z_q.detach() - z) ** 2
        ).mean()
        sample = z + (z_q - z).detach()
    x_hat = model.decoder(model.post_quant_conv(sample))
    rec = (x_hat - x).abs() + torch_lpips(lpips_variables, x_hat, x)[
        :, None, None, None
    ]
    nll = rec.sum() / len(x) if kind == "kl" else rec.mean()
    last = model.decoder.conv_out.weight
    gen = -disc(x_hat).mean()
    found = {"loss": nll + term}
    if awake:
        by_rec, by_gen = (
            torch.autograd.grad(value, last, retain_graph=True)[0]
            for value in (nll, gen)
        )
        weight = (by_rec.norm() / (by_gen.norm() + 1e-4)).clamp(0, 1e4).detach()
        found["adv_weight"] = DISC_WEIGHT * DISC_FACTOR * weight
        found["loss"] = found["loss"] + found["adv_weight"] * gen
        found["gen"] = gen
    for optimizer in optimizers:
        optimizer.zero_grad()
    found["loss"].backward()
    grads = {f"ae/{n}": p.grad.clone() for n, p in model.named_parameters()}
    optimizers[0].step()
    if awake:
        optimizers[1].zero_grad()
        real, fake = disc(x), disc(x_hat.detach())
        if hinge:
            pair = torch.relu(1 - real).mean(), torch.relu(1 + fake).mean()
        else:
            soft = torch.nn.functional.softplus
            pair = soft(-real).mean(), soft(fake).mean()
        found["disc"] = 0.5 * sum(pair)
        (DISC_FACTOR * found["disc"]).backward()
        grads |= {f"disc/{n}": p.grad.clone() for n, p in disc.named_parameters()}
        optimizers[1].step()
    return {n: float(v.detach()) for n, v in found.items()}, grads


def keep_gradient(kind):
    """Adam as in torch, with the plain gradient kept in its state."""
    return optax.chain(optax.trace(decay=0.0), optax.adam(RATE, eps=EPS[kind]))


@functools.cache
def our_stage(kind: str, loss: str) -> tuple:
    """(first state, step, LPIPS' variables); the discriminator wakes at step 1."""
    lpips, disc = LPIPS(WIDTHS), PatchDiscriminator(width=8, num_layers=1)
    x = jnp.zeros((2, SIDE, SIDE, 3))
    lpips_variables = drawn(jax.eval_shape(lpips.init, KEY, x, x), "lpips/")
    adversary = Adversary(
        disc,
        keep_gradient(kind),
        start_steps=1,
        weight=DISC_WEIGHT,
        factor=DISC_FACTOR,
        loss=loss,
    )
    stage = stage1.AutoencoderStage(
        NETWORKS[kind],
        keep_gradient(kind),
        image_size_px=SIDE,
        objective=stage1.Objective(perceptual=lpips, kl_weight=KL_WEIGHT),
        adversary=adversary,
    )
    return jax.jit(stage.init)(KEY), rule.fast_jit(stage.step), lpips_variables


@pytest.mark.parametrize(
    ("kind", "loss", "awake"),
    [
        ("kl", "hinge", False),
        ("kl", "hinge", True),
        pytest.param("kl", "vanilla", True, marks=pytest.mark.slow),
        pytest.param("vq", "hinge", False, marks=pytest.mark.slow),
        ("vq", "hinge", True),
    ],
)
def test_a_training_step(kind, loss, awake):
    network, model = NETWORKS[kind], torch_first_stage(kind)
    table = name_tables.diffusers_autoencoder_names(network)
    shapes = {name: tuple(v.shape) for name, v in model.state_dict().items()}
    weights = rule.draw(shapes, "step/")
    model.load_state_dict({name: torch.tensor(v) for name, v in weights.items()})
    images = np.tanh(rule.noise("images", (2, SIDE, SIDE, 3)))

    x = jnp.asarray(images)
    state, step, lpips_variables = our_stage(kind, loss)
    params = from_original(weights, table)
    variables = dict(state.discriminator.variables)
    variables["params"] = drawn(variables["params"], "disc/")
    state = state.replace(
        params=params,
        discriminator=Player(variables, state.discriminator.opt_state),
        step=jnp.asarray(int(awake), state.step.dtype),
    )
    after, scalars = step(state, {"lpips": lpips_variables}, {"image": x}, KEY)

    latent = jax.eval_shape(
        lambda v, x: network.apply(v, x, method="moments"), params, x
    ).shape
    noise = jax.random.normal(rng.stream(KEY, "latent"), (*latent[:3], latent[3] // 2))
    patchgan = torch_patchgan(variables["params"])
    starts = {f"ae/{n}": p.detach().clone() for n, p in model.named_parameters()}
    starts |= {f"disc/{n}": p.detach().clone() for n, p in patchgan.named_parameters()}
    found, grads = torch_step(
        kind,
        model,
        patchgan,
        lpips_variables,
        images,
        np.asarray(noise).transpose(0, 3, 1, 2).copy(),
        awake=awake,
        hinge=loss == "hinge",
    )
    for name, expected in found.items():
        assert float(scalars[name]) == pytest.approx(expected, rel=1e-4), name
    if not awake:
        assert float(scalars["adv_weight"]) == 0.0

    def ours(tree, player_params):
        whole = {f"ae/{n}": v for n, v in to_original(tree, table).items()}
        player = {f"disc/{n}": v for n, v in patchgan_entries(player_params).items()}
        return whole | player

    our_grads = ours(after.opt_state[0].trace, after.discriminator.opt_state[0].trace)
    our_ends = ours(after.params, after.discriminator.variables["params"])
    ends = {f"ae/{n}": p.detach() for n, p in model.named_parameters()}
    ends |= {f"disc/{n}": p.detach() for n, p in patchgan.named_parameters()}
    for name, expected in grads.items():
        player = name.partition("/")[0]
        rounding = ROUNDING * max(
            float(g.norm()) for n, g in grads.items() if n.startswith(player)
        )
        if expected.norm() < rounding:  # zero in exact arithmetic: a bias before a norm
            assert np.linalg.norm(our_grads[name]) < rounding, name
            continue
        assert_near(our_grads[name], expected, f"gradient of {name}")
        moved = np.asarray(our_ends[name]) - starts[name].numpy()
        assert_near(moved, ends[name] - starts[name], f"update of {name}")
    if not awake:
        for name, value in starts.items():
            if name.startswith("disc/"):
                np.testing.assert_array_equal(our_ends[name], value.numpy())


def assert_near(ours, theirs, what: str):
    """Relative L2 distance at most 1e-3."""
    theirs = theirs.numpy()
    distance = np.linalg.norm(np.asarray(ours) - theirs)
    assert distance <= 1e-3 * np.linalg.norm(theirs), what
