"""Small diffusers networks, what they answer, and the recording of it.

    python -m tests.reference.record_diffusers

writes diffusers_<network>.npz beside this file: `entries` ("name sides" of the state
dict), the epsilon of every norm, the outputs, and gradients of the UNet. Weights,
inputs and probes are functions of names (`rule`), so none are stored. The live tests
call the same code under another `salt`, which changes every number. Arrays are NHWC.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)

from tests.reference import rule

RECORDED = ("unet", "kl", "vq", "bert")
# Gradients stored whole; of all others the norm and the product with a probe.
WHOLE = (
    "conv_in.weight",
    "down_blocks.0.resnets.0.time_emb_proj.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    "mid_block.attentions.0.norm.weight",
    "up_blocks.1.resnets.0.norm2.bias",
)


def build(network: str) -> torch.nn.Module:
    """A small network of each kind, in evaluation mode, with diffusers' own weights."""
    unet = dict(sample_size=16, in_channels=4, out_channels=4, layers_per_block=1)
    down, cross = "DownBlock2D", "CrossAttnDownBlock2D"
    if network == "unet":
        # QUIRK of diffusers: here attention_head_dim is the number of heads.
        model = UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=(cross, down),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=48,
            attention_head_dim=4,
            **unet,
        )
    elif network == "unet_sd2":
        model = UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            down_block_types=(cross, cross, down),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=48,
            attention_head_dim=(2, 4, 4),
            use_linear_projection=True,
            **unet,
        )
    elif network == "unet_sdxl":
        model = UNet2DConditionModel(
            block_out_channels=(32, 64, 128),
            down_block_types=(down, cross, cross),
            up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
            cross_attention_dim=48,
            attention_head_dim=(2, 4, 8),
            transformer_layers_per_block=(1, 1, 3),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
            **unet,
        )
    elif network == "unet_plain":
        model = UNet2DModel(
            block_out_channels=(32, 64, 96),
            down_block_types=(down, "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=16,
            freq_shift=0,
            **unet,
        )
    elif network == "unet_scale_shift":
        model = UNet2DModel(
            block_out_channels=(32, 64),
            down_block_types=("AttnDownBlock2D",) * 2,
            up_block_types=("AttnUpBlock2D",) * 2,
            attention_head_dim=8,
            resnet_time_scale_shift="scale_shift",
            attn_norm_num_groups=32,  # else diffusers leaves out one norm
            downsample_type="resnet",
            upsample_type="resnet",
            freq_shift=0,
            **unet,
        )
    elif network == "kl":
        model = AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        )
    elif network == "vq":
        model = VQModel(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
            num_vq_embeddings=32,
            vq_embed_dim=5,
            layers_per_block=2,
        )
    else:
        config = LDMBertConfig(
            vocab_size=40,
            max_position_embeddings=12,
            encoder_layers=2,
            encoder_ffn_dim=128,
            encoder_attention_heads=2,
            head_dim=24,
            d_model=32,
        )
        model = LDMBertModel(config)
    return model.eval()


def shapes(model: torch.nn.Module) -> rule.Shapes:
    """Names and shapes of the parameters and buffers of a state dict."""
    return {name: tuple(array.shape) for name, array in model.state_dict().items()}


def set_weights(model: torch.nn.Module, salt: str) -> None:
    """Weights by the rule, every entry known as salt + name."""
    arrays = rule.draw(shapes(model), salt)
    model.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})


def first(image: np.ndarray) -> torch.Tensor:
    """A tensor, NCHW if it was NHWC."""
    if image.ndim == 4:
        image = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
    return torch.from_numpy(image)


def numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor, NHWC if it was NCHW."""
    array = tensor.detach().numpy()
    return rule.last(array) if array.ndim == 4 else array


def answer(network: str, model: torch.nn.Module, inputs: dict) -> dict:
    """The outputs of a network for `rule.diffusers_inputs`; NHWC."""
    if network.startswith("unet"):
        return unet_answer(model, inputs)
    with torch.no_grad():
        if network == "bert":
            return {"context": numpy(model(torch.from_numpy(inputs["tokens"]))[0])}
        if network == "kl":
            moments = model.encode(first(inputs["image"])).latent_dist.parameters
            recon = model.decode(first(inputs["z"])).sample
            return dict(moments=numpy(moments), recon=numpy(recon))
        prequant = model.encode(first(inputs["image"])).latents
        quant, _, (_, _, codes) = model.quantize(prequant)
        recon = model.decode(prequant).sample
        found = dict(prequant=prequant, quant=quant, recon=recon)
        codes = codes.reshape(quant.shape[0], *quant.shape[2:]).numpy()
        return {name: numpy(value) for name, value in found.items()} | {"codes": codes}


def eps(model: torch.nn.Module, inputs: dict, leaves: dict | None = None):
    """The prediction, NCHW; leaves may replace inputs that are differentiated by."""
    kinds = "z", "context", "pooled"
    given = {n: first(inputs[n]).to(model.dtype) for n in kinds if n in inputs}
    given |= leaves or {}
    more = {}
    if "context" in given:
        more["encoder_hidden_states"] = given["context"]
    if "pooled" in given:
        sizes = torch.from_numpy(inputs["sizes"])
        both = {"text_embeds": given["pooled"], "time_ids": sizes}
        more["added_cond_kwargs"] = both
    return model(given["z"], torch.from_numpy(inputs["t"]), **more).sample


def unet_answer(model: torch.nn.Module, inputs: dict) -> dict:
    """eps, and gradients of sum(eps * upstream) by z, conditions and parameters.

    Parameter gradients are returned under "grad/" + name, in diffusers' layout.
    """
    kinds = "z", "context", "pooled"
    leaves = {name: first(inputs[name]) for name in kinds if name in inputs}
    for leaf in leaves.values():
        leaf.requires_grad_()
    prediction = eps(model, inputs, leaves)
    (prediction * first(inputs["upstream"])).sum().backward()
    found = {f"grad_{name}": numpy(leaf.grad) for name, leaf in leaves.items()}
    for name, parameter in model.named_parameters():
        found[f"grad/{name}"] = parameter.grad.numpy()
    return found | {"eps": numpy(prediction)}


def compress(found: dict) -> dict:
    """Replace parameter gradients by their norm and probe, a few of them whole."""
    names = [name for name in found if name.startswith("grad/")]
    kept = {name: value for name, value in found.items() if name not in names}
    if names:
        summaries = [rule.summarise(name[5:], found[name]) for name in names]
        kept["grad_names"] = np.array([name[5:] for name in names])
        kept["grad_summaries"] = np.array(summaries)
        kept |= {f"grad/{name}": found[f"grad/{name}"] for name in WHOLE}
    return kept


def main() -> None:
    """Write all recorded files."""
    for network in RECORDED:
        model, salt = build(network), f"{network}/"
        set_weights(model, salt)
        found = answer(network, model, rule.diffusers_inputs(network, salt))
        sides = {name: ",".join(map(str, s)) for name, s in shapes(model).items()}
        entries = np.array([f"{name} {side}" for name, side in sides.items()])
        epsilons = {n: m.eps for n, m in model.named_modules() if hasattr(m, "eps")}
        path = rule.FOLDER / f"diffusers_{network}.npz"
        np.savez_compressed(
            path,
            entries=entries,
            norm_names=np.array(list(epsilons)),
            norm_epsilons=np.array(list(epsilons.values())),
            **compress(found),
        )


if __name__ == "__main__":
    main()
