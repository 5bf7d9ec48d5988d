"""CLIP's text towers against OpenCLIP's (recorded) and transformers' (live).

Tolerances: 1e-4 on normed states, which are of scale 1, in f32; 2e-2 in relative L2
norm between bf16 and f32, a rounding of 4e-3 a layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lDM_jax.core.errors import UserError
from lDM_jax.interop import names_text
from lDM_jax.models.clip_text import ClipText
from lDM_jax.weights import name_maps
from tests.reference import rule

TOLERANCE = 1e-4
ACTIVATIONS = ("quick_gelu", "gelu")
SMALL = dict(width=32, depth=3, num_heads=4, vocab_size=40, max_length=12)
# name: (fields, parameters); OpenCLIP's tower without its last block.
TOWERS = {
    "ViT-L/14": (dict(width=768, depth=12, num_heads=12), 123_060_480),
    "ViT-H/14": (
        dict(width=1024, depth=24, num_heads=16, activation="gelu"),
        352_984_064,
    ),
    "ViT-H/14 penultimate": (
        dict(
            width=1024,
            depth=24,
            num_heads=16,
            activation="gelu",
            output_layer="penultimate",
        ),
        340_387_840,
    ),
    "ViT-bigG/14": (
        dict(
            width=1280,
            depth=32,
            num_heads=20,
            activation="gelu",
            output_layer="penultimate",
            projection=1280,
        ),
        694_659_840,
    ),
}


def small(**fields) -> ClipText:
    return ClipText(**{**SMALL, **fields})


@pytest.fixture(scope="module")
def recorded():
    """OpenCLIP's answers; "shapes" of its state dict."""
    result = rule.read_arrays(rule.FOLDER / "open_clip.npz")
    entries = [entry.split(" ") for entry in result["entries"]]
    result["shapes"] = {
        name: tuple(int(side) for side in sides.split(",") if side)
        for name, sides in entries
    }
    return result


def open_clip_weights(recorded, network):
    """The recorded tower's weights in our tree, by exact cover."""
    state_dict = rule.draw(recorded["shapes"], "open_clip/")
    if not network.projection:
        # Unused, and here not as wide as the tower, as those of Stable Diffusion are.
        del state_dict["text_projection"]
    return name_maps.from_original(state_dict, names_text.openclip_names(network))


def answer(network, variables, tokens, method="__call__"):
    run = rule.fast_jit(lambda v, t: network.apply(v, t, method=method))
    return np.asarray(run(variables, tokens))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_open_clip_recorded(recorded, activation, layer):
    network = small(activation=activation, output_layer=layer)
    variables = open_clip_weights(recorded, network)
    context = answer(network, variables, recorded["tokens"])
    assert context.dtype == np.float32
    expected = recorded[f"{activation}/{layer}"]
    np.testing.assert_allclose(context, expected, rtol=0, atol=TOLERANCE)


def test_open_clip_projected_text_recorded(recorded):
    network = small(activation="gelu", output_layer="penultimate", projection=24)
    variables = open_clip_weights(recorded, network)
    pooled = answer(network, variables, recorded["tokens"], "pooled")
    np.testing.assert_allclose(pooled, recorded["gelu/pooled"], rtol=0, atol=TOLERANCE)
    context = answer(network, variables, recorded["tokens"])
    expected = recorded["gelu/penultimate"]
    np.testing.assert_allclose(context, expected, rtol=0, atol=TOLERANCE)


# transformers, live.
def build(activation, *, projection=24):
    """transformers' tower of the size of SMALL, with weights by the rule."""
    transformers = pytest.importorskip("transformers", reason="requirements-dev.txt")
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    config = transformers.CLIPTextConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=12,
        projection_dim=projection,
        hidden_act=activation,
        bos_token_id=38,
        eos_token_id=39,
        pad_token_id=39,
    )
    model = transformers.CLIPTextModelWithProjection(config).eval()
    shapes = {name: tuple(array.shape) for name, array in model.state_dict().items()}
    state_dict = rule.draw(shapes, "transformers/")
    model.load_state_dict({n: torch.from_numpy(a) for n, a in state_dict.items()})
    return model, state_dict


def ask(model, tokens) -> dict[str, np.ndarray]:
    """transformers' answers to tokens."""
    import torch

    with torch.no_grad():
        out = model(torch.from_numpy(tokens), output_hidden_states=True)
        norm = model.text_model.final_layer_norm
        states = {
            "last": out.last_hidden_state,
            "penultimate": norm(out.hidden_states[-2]),
            "raw": out.hidden_states[-2],
            "pooled": out.text_embeds,
        }
    return {name: state.numpy() for name, state in states.items()}


def without_projection(state_dict):
    return {n: a for n, a in state_dict.items() if n != "text_projection.weight"}


@pytest.mark.live
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_transformers_live(recorded, activation):
    model, state_dict = build(activation)
    tokens = recorded["tokens"]
    theirs = ask(model, tokens)
    cases = {
        "last": (dict(), without_projection(state_dict), "__call__"),
        "penultimate": (
            dict(output_layer="penultimate"),
            without_projection(state_dict),
            "__call__",
        ),
        "raw": (
            dict(output_layer="penultimate", output_norm=False, projection=24),
            state_dict,
            "__call__",
        ),
        "pooled": (dict(projection=24), state_dict, "pooled"),
    }
    for name, (fields, weights, method) in cases.items():
        network = small(activation=activation, **fields)
        variables = name_maps.from_original(weights, names_text.clip_names(network))
        ours = answer(network, variables, tokens, method)
        np.testing.assert_allclose(
            ours, theirs[name], rtol=0, atol=TOLERANCE, err_msg=name
        )


@pytest.mark.live
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_live(recorded, activation):
    model, state_dict = build(activation)
    expected = ask(model, recorded["tokens"])["last"]
    network = small(activation=activation, projection=24, dtype=jnp.bfloat16)
    variables = name_maps.from_original(state_dict, names_text.clip_names(network))
    context = answer(network, variables, recorded["tokens"])
    assert context.dtype == np.float32
    error = np.linalg.norm(context - expected) / np.linalg.norm(expected)
    # Below 1e-4 nothing would have been computed in bf16.
    assert 1e-4 < error < 2e-2


@pytest.mark.live
def test_both_programs_names_give_the_same_tree_live():
    """The same tower spelled in OpenCLIP's way: packed q, k, v; x @ text_projection."""
    _, theirs = build("gelu")
    spelled = {"logit_scale": np.float32(1.0)}
    moved = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    whole = "text_model."
    spelled["token_embedding.weight"] = theirs[
        f"{whole}embeddings.token_embedding.weight"
    ]
    spelled["positional_embedding"] = theirs[
        f"{whole}embeddings.position_embedding.weight"
    ]
    spelled["text_projection"] = theirs["text_projection.weight"].T
    for kind in ("weight", "bias"):
        spelled[f"ln_final.{kind}"] = theirs[f"{whole}final_layer_norm.{kind}"]
        for number in range(3):
            source = f"{whole}encoder.layers.{number}"
            target = f"transformer.resblocks.{number}"
            for old, new in moved.items():
                spelled[f"{target}.{new}.{kind}"] = theirs[f"{source}.{old}.{kind}"]
            blocks = [theirs[f"{source}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            spelled[f"{target}.attn.in_proj_{kind}"] = np.concatenate(blocks)
    network = small(projection=24)
    expected = name_maps.from_original(theirs, names_text.clip_names(network))
    result = name_maps.from_original(spelled, names_text.openclip_names(network))
    jax.tree.map(np.testing.assert_array_equal, result, expected)


@pytest.mark.live
def test_transformers_reads_what_we_write_live(recorded, tmp_path):
    model, _ = build("quick_gelu")
    from safetensors.numpy import save_file

    network, tokens = small(), recorded["tokens"]
    variables = network.init(jax.random.key(0), tokens)
    state_dict = name_maps.to_original(variables, names_text.clip_names(network))
    save_file(state_dict, tmp_path / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(tmp_path)
    import torch
    import transformers

    theirs, report = transformers.CLIPTextModel.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(tokens)).last_hidden_state.numpy()
    ours = answer(network, variables, tokens)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.live
@pytest.mark.parametrize("tower", TOWERS)
def test_published_sizes_live(tower):
    """Names and shapes of transformers' towers, nothing allocated: exact cover."""
    transformers = pytest.importorskip("transformers", reason="requirements-dev.txt")
    torch = pytest.importorskip("torch", reason="needs requirements-dev.txt")
    network = ClipText(**TOWERS[tower][0])
    dropped = network.output_layer == "penultimate" and not network.projection
    config = transformers.CLIPTextConfig(
        hidden_size=network.width,
        intermediate_size=4 * network.width,
        num_hidden_layers=network.depth - dropped,
        num_attention_heads=network.num_heads,
        projection_dim=network.projection or 1,
    )
    kind = "CLIPTextModelWithProjection" if network.projection else "CLIPTextModel"
    with torch.device("meta"):
        state_dict = getattr(transformers, kind)(config).state_dict()
    theirs = {name: tuple(array.shape) for name, array in state_dict.items()}
    prefix = "text_model." if any(n.startswith("text_model.") for n in theirs) else ""
    names = names_text.clip_names(network, prefix)
    ours = {n: entry.shape for n, entry in names.items() if entry.path is not None}
    assert ours == theirs


# Theorems.
@pytest.mark.parametrize("tower", TOWERS)
def test_published_parameter_counts(tower):
    fields, expected = TOWERS[tower]
    tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    shapes = jax.eval_shape(ClipText(**fields).init, jax.random.key(0), tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_a_token_sees_itself_and_what_came_before(recorded):
    network = small()
    variables = open_clip_weights(recorded, network)
    tokens = recorded["tokens"]
    other = tokens.copy()
    other[:, 5] += 1
    # Both in one batch: the same program, so equality is exact.
    both = answer(network, variables, np.concatenate([tokens, other]))
    before, after = np.split(both, 2)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before[:, 5:] - after[:, 5:]).max(axis=-1) > 1e-3).all()


def test_penultimate_is_last_of_one_block_less(recorded):
    deep = small(activation="gelu", output_layer="penultimate")
    flat = small(activation="gelu", depth=2)
    variables = open_clip_weights(recorded, deep)
    tokens = recorded["tokens"]
    np.testing.assert_array_equal(
        answer(deep, variables, tokens), answer(flat, variables, tokens)
    )


def test_pooled_without_projection_is_the_state_of_the_first_end_token(recorded):
    network = small()
    variables = open_clip_weights(recorded, network)
    tokens, ends = recorded["tokens"].copy(), (4, 7, 11)
    for row, end in enumerate(ends):
        tokens[row, end:] = 39
    context = answer(network, variables, tokens)
    pooled = answer(network, variables, tokens, "pooled")
    expected = context[np.arange(3), ends]
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-6)


# Names in checkpoints of Stable Diffusion.
def drawn(names, *, absent=()):
    shapes = {n: entry.shape for n, entry in names.items() if n not in absent}
    return rule.draw(shapes)


@pytest.mark.parametrize("program", ["1.x", "2.x"])
def test_what_is_not_used_may_be_absent_but_not_misshapen(program):
    if program == "1.x":
        prefix, network = "cond_stage_model.transformer.", small()
        names = name_maps.prefixed(names_text.clip_names(network), prefix, ("text",))
        unused = {"text_model.embeddings.position_ids", "text_projection.weight"}
        shape = (1, 12)
    else:
        prefix, network = "cond_stage_model.model.", small(output_layer="penultimate")
        names = name_maps.prefixed(
            names_text.openclip_names(network), prefix, ("text",)
        )
        unused = {"logit_scale", "attn_mask", "text_projection"}
        last = "transformer.resblocks.2."
        unused |= {n.removeprefix(prefix) for n in names if n.startswith(prefix + last)}
        assert len(unused) == 3 + 12
        shape = (12, 12)
    result = {n.removeprefix(prefix) for n, entry in names.items() if not entry.path}
    assert result == unused
    whole = drawn(names)
    few = drawn(names, absent={prefix + name for name in unused})
    expected = name_maps.from_original(whole, names)
    jax.tree.map(
        np.testing.assert_array_equal, name_maps.from_original(few, names), expected
    )
    # Ours again, which hold no entry without a use.
    written = name_maps.to_original(expected, names)
    assert written.keys() == few.keys()
    for name, array in few.items():
        np.testing.assert_array_equal(written[name], array)
    buffer = "text_model.embeddings.position_ids" if program == "1.x" else "attn_mask"
    assert whole[prefix + buffer].shape == shape
    whole[prefix + buffer] = np.zeros((1, 1))
    with pytest.raises(UserError, match=f"mismatched {prefix}{buffer}"):
        name_maps.from_original(whole, names)


def test_a_file_of_23_blocks_fits_a_penultimate_tower_of_24():
    """diffusers stores Stable Diffusion 2's tower without its last block."""
    stored = drawn(names_text.clip_names(small(depth=2)))
    network = small(output_layer="penultimate")
    variables = name_maps.from_original(stored, names_text.clip_names(network))
    assert "block_2" not in variables["params"]
    with pytest.raises(UserError, match="missing text_model.encoder.layers.2"):
        name_maps.from_original(stored, names_text.clip_names(small()))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(activation="relu"), "activation is 'relu': one of quick_gelu, gelu"),
        (dict(output_layer="first"), "output_layer is 'first': one of last, penult"),
        (dict(num_heads=5), "width 32 does not divide into 5 heads"),
        (dict(max_length=11), "12 tokens a text: this tower has 11 positions"),
    ],
)
def test_bad_fields_are_named(fields, message):
    tokens = jax.ShapeDtypeStruct((1, 12), jnp.int32)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(small(**fields).init, jax.random.key(0), tokens)


def test_pooled_needs_the_last_block(recorded):
    network = small(output_layer="penultimate")
    variables = open_clip_weights(recorded, network)
    with pytest.raises(UserError, match="set projection"):
        answer(network, variables, recorded["tokens"], "pooled")
