"""The released second stages: the model sections of their YAMLs, as compact tables.

Owns what the original program was configured with (latent-diffusion at a506df5, Stable
Diffusion 1.x and 2.x), what of it was counted there, and which list of names in
`state_dicts/whole` belongs to it. `params(model)` is the `params` of the YAML's model
section, without what only training reads.
"""

from typing import NamedTuple

ENCODERS = "ldm.modules.encoders.modules."


class Released(NamedTuple):
    """One YAML.

    states: its list of names ("" for none); unet, cond: parameters in thousands.
    unet_params beside image_size, in_channels, out_channels and num_res_blocks.
    """

    states: str
    unet: float
    cond: float
    first_stage: str
    betas: tuple[float, float]
    size: int
    in_channels: int
    unet_params: dict
    cond_stage: dict | str
    extra: dict


# ch_mult, channels, codes (0: KL), attn_resolutions
FIRST_STAGES = {
    "vq-f4": ([1, 2, 4], 3, 8192, []),
    "vq-f4-noattn": ([1, 2, 4], 3, 8192, []),
    "vq-f8": ([1, 2, 2, 4], 4, 16384, [32]),
    "kl-f8": ([1, 2, 4, 4], 4, 0, []),
    "kl-f16": ([1, 1, 2, 2, 4], 16, 0, [16]),
}


def unet(width: int, factors: list, mults: list, **more) -> dict:
    """params of a UNetModel."""
    return dict(
        model_channels=width, attention_resolutions=factors, channel_mult=mults, **more
    )


def spatial(context_dim: int, depth: int = 1, **more) -> dict:
    """What a UNet with spatial transformers has."""
    return dict(
        use_spatial_transformer=True,
        transformer_depth=depth,
        context_dim=context_dim,
        **more,
    )


def encoder(name: str, **params) -> dict:
    """A cond_stage_config."""
    return dict(target=ENCODERS + name, params=params)


NONE, LINEAR = "__is_unconditional__", (0.0015, 0.0195)
CROSS = dict(conditioning_key="crossattn", cond_stage_trainable=True)
BY_HEAD, EIGHT = dict(num_head_channels=32), dict(num_heads=8)
FACES = unet(224, [8, 4, 2], [1, 2, 3, 4], **BY_HEAD)
CHURCHES = unet(192, [1, 2, 4, 8], [1, 2, 2, 4, 4], **EIGHT)
CHURCHES |= dict(use_scale_shift_norm=True, resblock_updown=True)
SEMANTIC = unet(128, [32, 16, 8], [1, 4, 8], **EIGHT)
LABELS = encoder("SpatialRescaler", n_stages=2, in_channels=182, out_channels=3)
STABLE = unet(320, [4, 2, 1], [1, 2, 4, 4], legacy=False)
ONE, TWO = spatial(768, num_heads=8), spatial(1024, num_head_channels=64)
TWO |= dict(use_linear_in_transformer=True)
# fmt: off
MODELS = {
    "celeba256": Released("celeba256", 274_056, 0, "vq-f4", LINEAR, 64, 3,
        FACES, NONE, dict(concat_mode=False)),
    "churches256": Released("lsun_churches256", 294_967, 0, "kl-f8", (0.0015, 0.0155),
        32, 4, CHURCHES, NONE, dict(scale_by_std=True, loss_type="l1")),
    "cin256": Released("cin256", 394_984, 512, "vq-f8", LINEAR, 32, 4,
        unet(256, [4, 2, 1], [1, 2, 4], **BY_HEAD, **spatial(512)),
        encoder("ClassEmbedder", embed_dim=512, key="class_label"), CROSS),
    "cin256-v2": Released("cin256-v2", 400_921, 512.512, "vq-f4", LINEAR, 64, 3,
        unet(192, [8, 4, 2], [1, 2, 3, 5], num_heads=1, **spatial(512)),
        encoder("ClassEmbedder", embed_dim=512, n_classes=1001),
        CROSS | dict(use_ema=False)),
    "txt2img-1p4B": Released("txt2img-1p4B-eval", 872_300, 581_994, "kl-f8",
        (0.00085, 0.012), 32, 4, STABLE | spatial(1280, num_heads=8),
        encoder("BERTEmbedder", n_embed=1280, n_layer=32),
        CROSS | dict(use_ema=False, scale_factor=0.18215)),
    "text2img256": Released("text2img256", 403_624, 186_155, "vq-f4", LINEAR, 64, 3,
        unet(192, [8, 4, 2], [1, 2, 3, 5], **BY_HEAD, **spatial(640)),
        encoder("BERTEmbedder", n_embed=640, n_layer=32), CROSS),
    "layout2img": Released("layout2img-openimages256", 246_277, 58_858, "vq-f4",
        (0.0015, 0.0205), 64, 3,
        unet(128, [8, 4, 2], [1, 2, 3, 4], **BY_HEAD, **spatial(512, 3)),
        encoder("BERTEmbedder", n_embed=512, n_layer=16, vocab_size=8192,
                max_seq_len=92, use_tokenizer=False),
        CROSS | dict(cond_stage_key="coordinates_bbox", loss_type="l1")),
    "bsr_sr": Released("bsr_sr", 113_623, 0, "vq-f4", (0.0015, 0.0155), 64, 6,
        unet(160, [16, 8], [1, 2, 2, 4], **BY_HEAD),
        dict(target="torch.nn.Identity"),
        dict(cond_stage_key="LR_image", concat_mode=True)),
    "inpainting_big": Released("inpainting_big", 387_246, 0, "vq-f4-noattn",
        (0.0015, 0.0205), 64, 7,
        unet(256, [8, 4, 2], [1, 2, 3, 4], **EIGHT, resblock_updown=True),
        "__is_first_stage__", dict(cond_stage_key="masked_image", concat_mode=True)),
    "semantic256": Released("semantic_synthesis256", 215_229, 0.546, "vq-f4",
        (0.0015, 0.0205), 64, 6, SEMANTIC, LABELS,
        dict(cond_stage_key="segmentation", concat_mode=True)),
    "semantic512": Released("semantic_synthesis256", 215_229, 0.546, "vq-f4",
        (0.0015, 0.0205), 128, 6, SEMANTIC, LABELS,
        dict(cond_stage_key="segmentation", concat_mode=True)),
    "rdm768": Released("rdm768", 1_335_480, 0, "kl-f16", (0.0015, 0.015), 48, 16,
        unet(448, [4, 2, 1], [1, 2, 3, 4], **BY_HEAD, **spatial(768)),
        dict(target="torch.nn.Identity"),
        dict(conditioning_key="crossattn", scale_factor=0.22765929)),
    "stable-1": Released("", 859_521, 123_060, "kl-f8", (0.00085, 0.012), 64, 4,
        STABLE | ONE, dict(target=ENCODERS + "FrozenCLIPEmbedder"),
        dict(conditioning_key="crossattn", use_ema=False, scale_factor=0.18215)),
    "stable-2": Released("", 865_911, 340_388, "kl-f8", (0.00085, 0.012), 64, 4,
        STABLE | TWO, encoder("FrozenOpenCLIPEmbedder", layer="penultimate"),
        dict(conditioning_key="crossattn", use_ema=False, scale_factor=0.18215,
             parameterization="v")),
}
# YAMLs whose model sections are those of another one, as far as they are read here.
SAME = {
    "configs/latent-diffusion/celebahq-ldm-vq-4": "celeba256",
    "configs/latent-diffusion/ffhq-ldm-vq-4": "celeba256",
    "configs/latent-diffusion/lsun_bedrooms-ldm-vq-4": "celeba256",
    "configs/latent-diffusion/lsun_churches-ldm-kl-8": "churches256",
    "configs/latent-diffusion/cin-ldm-vq-f8": "cin256",
    "models/ldm/ffhq256": "celeba256",
    "models/ldm/lsun_beds256": "celeba256",
}
# fmt: on


def first_stage(name: str) -> dict:
    """A first_stage_config."""
    mults, channels, codes, resolutions = FIRST_STAGES[name]
    ddconfig = dict(double_z=not codes, z_channels=channels, resolution=256)
    ddconfig |= dict(in_channels=3, out_ch=3, ch=128, ch_mult=mults, num_res_blocks=2)
    ddconfig |= dict(attn_resolutions=resolutions, dropout=0.0)
    if name.endswith("noattn"):
        ddconfig["attn_type"] = "none"
    params = dict(embed_dim=channels, ddconfig=ddconfig, monitor="val/rec_loss")
    params |= {"n_embed": codes} if codes else {}
    kind = "VQModelInterface" if codes else "AutoencoderKL"
    return dict(target=f"ldm.models.autoencoder.{kind}", params=params)


def factor(model: str) -> int:
    """Pixels a latent position along each side."""
    return 2 ** (len(FIRST_STAGES[MODELS[model].first_stage][0]) - 1)


def params(model: str) -> dict:
    """The `params` of a LatentDiffusion, as its YAML has them."""
    found = MODELS[model]
    out = FIRST_STAGES[found.first_stage][1]
    inner = dict(image_size=found.size, in_channels=found.in_channels, out_channels=out)
    inner |= dict(num_res_blocks=2) | found.unet_params
    kind = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    plain = dict(linear_start=found.betas[0], linear_end=found.betas[1])
    plain |= dict(num_timesteps_cond=1, log_every_t=200, timesteps=1000)
    plain |= dict(first_stage_key="image", image_size=found.size, channels=out)
    plain |= dict(monitor="val/loss_simple_ema", cond_stage_key="image")
    return (
        plain
        | found.extra
        | dict(
            unet_config=dict(target=kind, params=inner),
            first_stage_config=first_stage(found.first_stage),
            cond_stage_config=found.cond_stage,
        )
    )
