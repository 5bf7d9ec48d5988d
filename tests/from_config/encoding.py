"""What tests of the latents cache share: the tool, its files, and configs for it."""

import hashlib

from configs import common
from lDM_jax.tools import encode_latents

SMOKE = "configs/emoji_class.py:smoke"
SMALL = ["--shard_size", "16", "--batch_size", "8"]


def run(out, *flags, config=SMOKE, first_stage="identity"):
    """The tool; without a first stage, where it does not matter, moments are pixels."""
    flags = [*SMALL, "--set", f"first_stage.path={first_stage}", *flags]
    return encode_latents.main(["--config", config, "--out", str(out), *flags])


def settings(path, task="class", source="latents", **data):
    config = common.emoji(task)
    config.num_classes = 99
    config = common.finish(config, "smoke").unlock()
    config.first_stage.path = "identity"
    config.data.update(dict(source=source, path=str(path), **data))
    return config


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
