"""A small classifier of the embedded emoji, whose features compare runs on them.

Five convolutions and a linear head over the 99 subgroups, trained by
`tools/train_emoji_features.py`. It takes the place of InceptionV3, so that an
evaluation runs without any download. It only serves to compare runs on the embedded
set: its figures do not compare with published ones.
"""

import flax.linen as nn
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Float, typecheck

SIZE_PX = 64
LAYERS = ((24, 2), (48, 2), (80, 1), (96, 2), (112, 1))  # channels, stride
GROUPS = 8
SPATIAL_CHANNELS = 7
CLASSES = 99


class EmojiFeatures(nn.Module):
    """Pixels f32 [-1, 1] "b 64 64 3" -> {"pool", "spatial", "logits"}, all f32.

    pool "b 112": means over the last activations; spatial "b 448": seven channels of
    the fourth layer at all 8 x 8 positions, as sFID takes seven of InceptionV3's;
    logits "b 99" of the subgroups. Products run in full f32.
    """

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b h w 3"]) -> dict[str, Array]:
        if x.shape[1:3] != (SIZE_PX, SIZE_PX):
            raise ValueError(f"images of {x.shape[1:3]}, not {SIZE_PX} px a side")
        spatial = None
        for index, (channels, stride) in enumerate(LAYERS):
            conv = nn.Conv(
                channels, (3, 3), stride, precision="highest", name=f"conv_{index}"
            )
            x = nn.relu(nn.GroupNorm(GROUPS, name=f"norm_{index}")(conv(x)))
            if index == 3:
                spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
        pool = x.mean(axis=(1, 2))
        logits = nn.Dense(CLASSES, precision="highest", name="head")(pool)
        return {"pool": pool, "spatial": spatial, "logits": logits.astype(jnp.float32)}
