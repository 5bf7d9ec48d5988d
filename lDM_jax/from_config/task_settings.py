"""A config's task, and what of the config the task reads."""

import dataclasses

from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.from_config import older
from lDM_jax.tasks.registry import get_task
from lDM_jax.tasks.task import Settings, Task
from lDM_jax.weights import directory as weights_directory

SHARED = {field.name for field in dataclasses.fields(Settings)}


def task_of(config: ConfigDict) -> Task:
    """The task of a config; a first stage's, which has none, is without conditions."""
    return get_task(config.get("task", "unconditional"))


def task_settings(config: ConfigDict) -> Settings:
    """The values that the config's task reads.

    Sections that the config's stage does not have are empty.
    """
    task, plain = task_of(config), config.to_dict()
    values = {name: plain[name] for name in SHARED & plain.keys()}
    if "unet" in plain:
        values["context_width"] = plain["unet"]["context_width"]
        values["time_width"] = 4 * plain["unet"]["width"]
    if task.towers is not None:
        values["text"] = own_section(plain["text"])
    data, loss = plain["data"], plain.get("loss", {})
    return Settings(
        size_px=data["size_px"],
        class_names=tuple(data["classes"]),
        drop_rate=loss.get("drop_rate", 0.0),
        make_tokenizer=task.tokenizer,
        **values,
    )


def own_section(section: dict) -> dict:
    """The text section of a frozen tower's own directory, if it has one."""
    path = section.get("path", "")
    if path in ("", "random"):
        return section
    stored = weights_directory.read_config(weights_directory.resolve(path))
    if stored.get("stage") != "text":
        raise UserError(f"{path} is no text tower (stage: {stored.get('stage')})")
    return older.complete(stored)["text"]
