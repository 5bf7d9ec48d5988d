"""Tiny random pipelines of diffusers, and what they draw. Needs torch and diffusers.

Owns how diffusers is called by the tests of the converter: `KINDS` by name, their
weights by the rule, and `draw`, which returns the latents before decoding as well.
"""

import logging
import warnings

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)

from lDM_jax.interop.diffusers import write as to_diffusers
from tests.reference import record_diffusers, rule

SIDE = 8  # of the latents
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
DDIM = dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def quiet() -> None:
    """No progress bars, no notes about what is missing on purpose, one thread.

    Tiny networks wait for threads longer than they compute, on a busy machine.
    """
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def kl(levels: int, channels: int = 4, **more):
    """A first stage with posteriors, f = 2^(levels - 1)."""
    return diffusers.AutoencoderKL(
        block_out_channels=(32,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        sample_size=SIDE * 2 ** (levels - 1),
        **more,
    )


def vq(**more):
    """A first stage with codes, f = 4."""
    return diffusers.VQModel(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        num_vq_embeddings=32,
        vq_embed_dim=3,
        sample_size=4 * SIDE,
        **more,
    )


def plain_unet(**more):
    """A UNet2DModel of two levels."""
    options = dict(in_channels=3, out_channels=3, attention_head_dim=16)
    options |= dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"))
    options |= dict(up_block_types=("AttnUpBlock2D", "UpBlock2D")) | more
    return diffusers.UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        freq_shift=0,
        **options,
    )


def spatial_unet(width: int, **more):
    """A UNet2DConditionModel of two levels."""
    options = dict(attention_head_dim=4) | more
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=width,
        **options,
    )


def tokenizer(kind: str, folder, length: int = 77, pad: str = "<|endoftext|>"):
    """transformers' tokenizer of the released vocabularies."""
    if kind == "bert":
        files = to_diffusers.bert_tokenizer(length)
    else:
        files = to_diffusers.clip_tokenizer(length, pad)
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    name = "BertTokenizer" if kind == "bert" else "CLIPTokenizer"
    return getattr(transformers, name).from_pretrained(folder)


def bert():
    """An LDMBertModel with the heads that its own default has not."""
    config = LDMBertConfig(
        encoder_layers=1,
        encoder_ffn_dim=128,
        encoder_attention_heads=2,
        head_dim=24,
        d_model=32,
    )
    return LDMBertModel(config)


def clip(activation: str, depth: int = 2):
    """A CLIPTextModel."""
    config = transformers.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=depth,
        num_attention_heads=2,
        hidden_act=activation,
    )
    return transformers.CLIPTextModel(config)


def stable(folder, unet, text, pad: str, prediction: str):
    """A StableDiffusionPipeline."""
    return diffusers.StableDiffusionPipeline(
        vae=kl(2),
        text_encoder=text,
        tokenizer=tokenizer("clip", folder, pad=pad),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(**BETAS, **DDIM, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build(kind: str, folder):
    """A pipeline by name, all weights by the rule."""
    scheduler = diffusers.DDIMScheduler(**BETAS, **DDIM)
    if kind == "ldm_vq":
        pipe = diffusers.LDMPipeline(vq(scaling_factor=1.0), plain_unet(), scheduler)
    elif kind == "ldm_kl":
        changes = dict(in_channels=4, out_channels=4, attn_norm_num_groups=32)
        changes |= dict(resnet_time_scale_shift="scale_shift")
        changes |= dict(downsample_type="resnet", upsample_type="resnet")
        changes["down_block_types"] = ("ResnetDownsampleBlock2D", "AttnDownBlock2D")
        changes["up_block_types"] = ("AttnUpBlock2D", "ResnetUpsampleBlock2D")
        pipe = diffusers.LDMPipeline(
            kl(2, scaling_factor=0.5), plain_unet(**changes), scheduler
        )
    elif kind == "ldm_super":
        pipe = diffusers.LDMSuperResolutionPipeline(
            vq(), plain_unet(in_channels=6), scheduler
        )
    elif kind == "ldm_text":
        pipe = diffusers.LDMTextToImagePipeline(
            kl(4), bert(), tokenizer("bert", folder), spatial_unet(32), scheduler
        )
    elif kind == "stable_1":
        unet, pad = spatial_unet(32), "<|endoftext|>"
        pipe = stable(folder, unet, clip("quick_gelu"), pad, "epsilon")
    else:
        # As Stable Diffusion 2: linear projections, more heads below, v.
        unet = spatial_unet(
            32,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            upcast_attention=True,
        )
        pipe = stable(folder, unet, clip("gelu"), "!", "v_prediction")
    for name, model in pipe.components.items():
        if isinstance(model, torch.nn.Module):
            set_weights(model.eval(), f"pipelines/{kind}/{name}/")
    return pipe


def set_weights(model: torch.nn.Module, salt: str) -> None:
    """Weights by the rule, at half the size in networks: trajectories stay finite."""
    shapes = record_diffusers.shapes(model)
    arrays = rule.draw(shapes, salt)
    kept = {}
    for name, array in model.state_dict().items():
        drawn = torch.from_numpy(np.array(arrays[name]))
        kept[name] = array if array.dtype == torch.int64 else drawn
    model.load_state_dict(kept)


KINDS = ("ldm_vq", "ldm_kl", "ldm_super", "ldm_text", "stable_1", "stable_2")


def draw(pipe, noise: np.ndarray, *, steps: int, guidance=1.0, prompts=None, low=None):
    """(latents, pixels in [0, 1]) of a pipeline from noise, NHWC."""
    seen = {}
    first = getattr(pipe, "vqvae", None) or pipe.vae
    decode = first.decode

    def note(z, *args, **kwargs):
        seen["z"] = z
        kwargs.pop("generator", None)
        return decode(z, *args, **kwargs)

    first.decode = note
    start = record_diffusers.first(noise)
    options = dict(num_inference_steps=steps, output_type="np")
    pipe.set_progress_bar_config(disable=True)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if prompts is None:
                images = _draw_unguided(pipe, start, low, options)
            else:
                images = pipe(
                    prompts, latents=start, guidance_scale=guidance, **options
                ).images
    finally:
        first.decode = decode
    return record_diffusers.numpy(seen["z"]), np.asarray(images)


def _draw_unguided(pipe, start: torch.Tensor, low, options: dict) -> np.ndarray:
    """These pipelines take no noise: a generator stands for it."""
    if low is None:
        call = dict(batch_size=len(start))
    else:
        call = dict(image=record_diffusers.first(low))
    module = __import__(type(pipe).__module__, fromlist=["randn_tensor"])
    original = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: start
    try:
        return pipe(**call, **options).images
    finally:
        module.randn_tensor = original
