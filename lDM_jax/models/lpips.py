"""LPIPS: how far apart two images look to VGG16.

    d(x, y) = sum_l mean_hw sum_c w_lc (u_l(x) - u_l(y))^2,  u_l = F_l / (|F_l| + 1e-10)

F_l are the activations relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 of VGG16, w_l >= 0
linear heads, both of version 0.1 of the weights (`perceptual.load_lpips`). Source:
Zhang et al. 2018 (arXiv 1801.03924), eq. 1; Simonyan and Zisserman 2015 for VGG16. The
dropout before the heads, used when they were trained, is not reproduced.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from lDM_jax.core.arrays import Array, Float, typecheck
from lDM_jax.core.errors import UserError
from lDM_jax.models.layers import conv3x3

VGG16_WIDTHS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
# Mean and deviation of ImageNet's colors, moved from [0, 1] to [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
UNIT_EPS = 1e-10


class LPIPS(nn.Module):
    """Pixels f32 [-1, 1] "b H W 3", twice -> distances f32 "b", 0 for equal images.

    widths: of the convolutions, a tuple for each slice; 2x2 maxima lie between slices,
    so an image's sides are at least 2^(slices - 1) px. dtype is the convolutions';
    norms and sums are f32. Differentiable by both images.
    """

    widths: Sequence[Sequence[int]] = VGG16_WIDTHS
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        widths = [width for widths in self.widths for width in widths]
        self.convs = [conv3x3(width, None, dtype=self.dtype) for width in widths]
        options = dict(use_bias=False, dtype=jnp.float32, precision="highest")
        starts = [nn.initializers.constant(1 / widths[-1]) for widths in self.widths]
        self.heads = [nn.Dense(1, kernel_init=start, **options) for start in starts]

    @typecheck
    def __call__(
        self, x: Float[Array, "b H W 3"], y: Float[Array, "b H W 3"]
    ) -> Float[Array, " b"]:
        least = 2 ** (len(self.widths) - 1)
        if min(x.shape[1:3]) < least:
            raise UserError(
                f"LPIPS needs images of at least {least} px a side, not "
                f"{x.shape[1]} x {x.shape[2]}"
            )
        # Separately, so that nothing is stored for an image without a gradient.
        features = zip(self.heads, self.units(x), self.units(y), strict=True)
        return sum(head((u - v) ** 2).mean(axis=(1, 2, 3)) for head, u, v in features)

    def units(self, x: Array) -> list[Array]:
        """The activations after each slice, f32 of unit length over channels."""
        shift, scale = jnp.array([SHIFT, SCALE]).reshape(2, 1, 1, 1, 3)
        h = (x.astype(jnp.float32) - shift) / scale
        convs, units = iter(self.convs), []
        for index, widths in enumerate(self.widths):
            if index > 0:
                h = nn.max_pool(h, (2, 2), (2, 2))
            for _ in widths:
                h = nn.relu(next(convs)(h))
            units.append(unit(h.astype(jnp.float32)))
        return units


def unit(features: Array) -> Array:
    """F / (|F| + 1e-10) over channels.

    Where all channels are zero the root's slope is infinite and the gradient NaN; the
    ReLU before, closed there, selects zero instead.
    """
    norm = jnp.sqrt((features**2).sum(axis=-1, keepdims=True))
    return features / (norm + UNIT_EPS)
