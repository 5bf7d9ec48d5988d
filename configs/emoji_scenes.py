"""What the tasks on scenes of embedded emoji share (shared file).

Scenes are 64 px with two to four emoji; their first stage is
`configs/emoji_scenes_autoencoder.py` (f = 4, latents 16 x 16 x 4), so that the networks
have one level more than `configs/emoji.py`'s.
"""

from configs import common, emoji


def base(task: str, *, num_scenes: int = 12_000):
    """The config of a task on scenes; latents are cached where nothing is random."""
    config = emoji.base(task)
    scenes = dict(num_scenes=num_scenes, max_objects=4)
    config.data.update(dict(source="scenes", scenes=scenes))
    config.first_stage.path = "emoji_scenes_kl_f4"
    config.first_stage.network = common.first_stage_network(
        width=16, num_res_blocks=1, z_channels=4, latent_channels=4, num_groups=8
    )
    config.unet.update(
        dict(width=48, width_mults=(1, 2, 2), num_res_blocks=1, attn_factors=(2, 4))
    )
    return config
