"""VGG16 up to its second dense layer: features of the original precision, recall.

Source: Simonyan and Zisserman 2015; Kynkaanniemi et al. 2019 for the use. Its
convolutions also serve LPIPS (`models.lpips`), which reads them at five depths.
"""

import flax.linen as nn
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Float, typecheck
from lDM_jax.models.lpips import VGG16_WIDTHS

SIZE_PX = 224
DENSE = 4096
# ImageNet's colors in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG16(nn.Module):
    """Normalized pixels f32 "b 224 224 3" -> {"pool": fc2 after its ReLU "b 4096"}."""

    @nn.compact
    @typecheck
    def __call__(self, x: Float[Array, "b 224 224 3"]) -> dict[str, Array]:
        number = 0
        for widths in VGG16_WIDTHS:
            for width in widths:
                conv = nn.Conv(
                    width, (3, 3), precision="highest", name=f"features_{number}"
                )
                x, number = nn.relu(conv(x)), number + 2
            x, number = nn.max_pool(x, (2, 2), (2, 2)), number + 1
        # The dense layer's inputs are ordered channel by channel.
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)
        for number in (0, 3):
            dense = nn.Dense(DENSE, precision="highest", name=f"classifier_{number}")
            x = nn.relu(dense(x))
        return {"pool": x}
