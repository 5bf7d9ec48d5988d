"""`UploadTab`: what the tabs that begin with an uploaded image have in common."""

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.studio import limits, painter
from lDM_jax.studio.served import Served
from lDM_jax.studio.session import Session
from lDM_jax.studio.tabs.tab import Tab


class UploadTab(Tab):
    """Takes an image (`#NAME_file`) or the current one (`#NAME_use`), if offered.

    It stays in the session's inputs under the tab's name. missing: what is said while
    there is none; shows: the elem_ids that show it.
    """

    missing: str
    offers_current = True

    @property
    def shows(self) -> tuple[str, ...]:
        return (self.name,)

    def wire(self, page) -> None:
        page.on(self, self.name, "upload", self.upload, outputs=self.shows)
        if self.offers_current:
            page.on(self, f"{self.name}_use", "click", self.use, outputs=self.shows)

    def upload(self, session: Session, served: Served, name: str, data: bytes) -> dict:
        """Take a file; updates that show it."""
        return self.take(session, self.prepare(limits.decode_image(data, name), served))

    def use(self, session: Session, served: Served) -> dict:
        """Take the current image; updates that show it."""
        if session.current is None:
            raise UserError("there is no picture yet: generate one first")
        return self.take(session, self.reuse(session.current.pixels, served))

    def take(self, session: Session, pixels: np.ndarray, **more) -> dict:
        """Keep an image uint8 "H W 3" as the tab's; updates that show it."""
        session.inputs[self.name] = pixels
        return self.show(pixels, **more)

    def prepare(self, pixels: np.ndarray, served: Served) -> np.ndarray:
        """An uploaded image, as the tab uses it."""
        large = max(pixels.shape[:2]) > limits.MAX_SIDE_PX
        return limits.fit(pixels, served.own_extent) if large else pixels

    def reuse(self, pixels: np.ndarray, served: Served) -> np.ndarray:
        """An image that was drawn here, as the tab uses it."""
        return pixels

    def show(self, pixels: np.ndarray) -> dict[str, dict]:
        """Updates that show what the tab has taken."""
        height, width = pixels.shape[:2]
        thumbnail = (
            f"<img alt='your picture' src='{painter.data_uri(pixels, 96)}'> "
            f"{width} x {height} pixels"
        )
        return {self.name: {"value": thumbnail}}

    def image(self, inputs: dict) -> np.ndarray:
        """The image that was taken. UserError if there is none."""
        if self.name not in inputs:
            raise UserError(self.missing)
        return inputs[self.name]
