"""The published first stages: one table of networks, one of recipes (shared file).

Width 128, two blocks a level, 256-px crops, Adam(0.5, 0.9) at 4.5e-6 times the batch
(one device), L1 + LPIPS + adaptive hinge discriminator, no EMA. Attention resolutions
of 256 px are written as downsampling factors. Rombach et al. 2022, table 8 and
appendix G; numbers of the released configs.
"""

from configs import common, data

VQ = dict(legacy_beta=True)
F4 = dict(width_mults=(1, 2, 4), z_channels=3, latent_channels=3)
F8_VQ = dict(
    width_mults=(1, 2, 2, 4), z_channels=4, latent_channels=4, attn_factors=(8,), **VQ
)
F16_MULTS = (1, 1, 2, 2, 4)
F32_MULTS = (1, 1, 2, 2, 4, 4)

NETWORKS = {
    "kl_f2": dict(width_mults=(1, 2), z_channels=2, latent_channels=2),
    "kl_f4": F4,
    "kl_f8": dict(width_mults=(1, 2, 4, 4), z_channels=4, latent_channels=4),
    "kl_f16": dict(
        width_mults=F16_MULTS, z_channels=16, latent_channels=16, attn_factors=(16,)
    ),
    "kl_f32": dict(
        width_mults=F32_MULTS, z_channels=64, latent_channels=64, attn_factors=(16, 32)
    ),
    "vq_f2": dict(
        width_mults=(1, 2), z_channels=2, latent_channels=2, num_codes=2048, **VQ
    ),
    "vq_f4": dict(num_codes=8192, **F4, **VQ),
    "vq_f4_noattn": dict(num_codes=8192, mid_attn=False, **F4, **VQ),
    "vq_f8": dict(num_codes=16384, **F8_VQ),
    "vq_f8_n256": dict(num_codes=256, **F8_VQ),
    "vq_f16": dict(
        width_mults=F16_MULTS,
        z_channels=8,
        latent_channels=8,
        attn_factors=(16,),
        num_codes=16384,
        **VQ,
    ),
    "vq_f32": dict(
        width_mults=F32_MULTS,
        z_channels=16,
        latent_channels=16,
        attn_factors=(16, 32),
        num_codes=16384,
        **VQ,
    ),
}


def network(name: str, **changes):
    """The config section of a published first stage's network."""
    return common.first_stage_network(**{**NETWORKS[name], **changes})


def recipe(
    name: str,
    arg: str,
    *,
    batch_size: int,
    num_steps: int,
    disc_start_steps: int,
    disc_weight: float,
    disc_num_layers: int = 3,
):
    """The training config of a published first stage; `arg` as `common.finish`."""
    config = common.autoencoder()
    config.data.update(dict(size_px=256, **data.OPENIMAGES_PICTURES))
    config.autoencoder = network(name)
    config.discriminator.update(
        dict(
            start_steps=disc_start_steps,
            weight=disc_weight,
            num_layers=disc_num_layers,
        )
    )
    config.optimizer.learning_rate = 4.5e-6 * batch_size
    config.train.update(dict(batch_size=batch_size, num_steps=num_steps, ema_decay=0.0))
    return common.finish(config, arg)
