"""Image to image: an image is changed as far as `strength` says."""

from lDM_jax.sampling.request import Request
from lDM_jax.studio import limits
from lDM_jax.studio.served import Served
from lDM_jax.studio.tabs.uploads import UploadTab


class Image(UploadTab):
    """From the noised latents of an image, at the chosen size."""

    name, title = "image", "Image to image"
    reads = ("prompt", "")
    controls = ("strength",)
    missing = "upload a picture to change"

    def build(self, ui, served: Served | None) -> None:
        ui.upload("image", "Choose a picture to change, or drop one here")
        ui.button("image_use", "Take the current picture", size="sm")
        ui.slider("strength", "Strength", 0.05, 1, 0.6, step=0.05)

    def fields(self, controls: dict, served: Served, inputs: dict) -> dict:
        pixels, extent = self.image(inputs), served.extent(controls["size"])
        return {
            "image": limits.fit(pixels, extent),
            "strength": controls["strength"],
            "window_px": served.window(extent),
        }

    def makes(self, request: Request) -> bool:
        plain = request.mask is None and not request.regions
        return plain and request.image is not None

    def restore(self, request: Request, served: Served) -> dict:
        return {"strength": request.strength}
