"""What a stored config means that was written before an option existed.

A config is stored beside the weights that it made, and later versions have options that
it does not name. Here stands once what each of them was before, whatever its default is
today (`configs.common`): everything that reads a stored config completes it first.
"""

from collections.abc import Mapping

UNET = {
    "transformer_depth": 1,
    "linear_projections": False,
    "vector_width": 0,
    "qk_norm": False,
    "remat_policy": "nothing",
}
DATA = {
    "source": "emoji",
    "path": "",
    "data_dir": "",
    "about": "",
    "size_px": 256,
    "crop": "center",
    "resize_px": 0,
    "filter": "bicubic",
    "flip": 0.0,
    "background": "white",
    "min_px": 1,
    "max_bad_share": 0.05,
    "limit": 0,
    "classes": (),
    "scenes": {},
}
# By stage, as the sections that everyone of that stage reads.
BEFORE = {
    "autoencoder": {"data": DATA},
    "diffusion": {
        "data": {**DATA, "cache_draws": 0},
        "num_classes": 0,
        "null_class": True,
        "unet": UNET,
        "text": {"kind": "bert", "vocab_size": 30_522},
        "layout": {"within_boxes": False},
        "rescaler": {"num_stages": 2, "width": 3},
        "low_res": {"kind": "bicubic", "factor": 4, "fold": 1},
        "masks": {"kind": "mixed"},
        "process": {"kind": "discrete", "zero_terminal_snr": False},
        "loss": {"loss": "l2", "log_variance": False, "drop_rate": 0.0},
        "sample": {"spacing": "leading"},
    },
    "classifier": {"data": DATA, "unet": UNET, "null_class": True},
    "text": {"text": {"pad": "eos"}},
}


def complete(stored: Mapping) -> dict:
    """A stored config with what its version did not say, a new dict."""
    return merged(stored, BEFORE.get(stored.get("stage"), {}))


def merged(values: Mapping, before: Mapping) -> dict:
    """The values, and of `before` what they lack, section by section."""
    whole = {**before, **values}
    for key, inner in before.items():
        if isinstance(inner, Mapping) and isinstance(whole[key], Mapping):
            whole[key] = merged(whole[key], inner)
    return whole
