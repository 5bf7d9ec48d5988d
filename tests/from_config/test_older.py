"""Configs that older versions stored: what they do not say, they still mean."""

import json

import pytest

from configs import common
from lDM_jax.core.files import ASSETS
from lDM_jax.from_config import networks, older
from lDM_jax.from_config.task_settings import task_settings

TODAY = {
    "autoencoder": common.autoencoder(),
    "diffusion": common.diffusion(),
    "classifier": common.as_classifier(common.diffusion()),
}


def paths(section, prefix=()) -> set:
    """The paths of all values."""
    found = set()
    for key, value in section.items():
        inner = isinstance(value, dict) and value
        found |= paths(value, (*prefix, key)) if inner else {(*prefix, key)}
    return found


@pytest.mark.parametrize("stage", TODAY)
def test_the_table_names_options_that_configs_have(stage):
    known = paths(TODAY[stage].to_dict())
    assert paths(older.BEFORE[stage]) - known == set()


@pytest.mark.parametrize("stage", TODAY)
def test_what_a_config_says_stays(stage):
    config = TODAY[stage].to_dict()
    assert older.complete(config) == config


def test_the_first_release_still_means_what_it_did():
    stored = json.loads((ASSETS / "emoji" / "config.json").read_text())
    assert "null_class" not in stored and "crop" not in stored["data"]
    config, _ = networks.load_trained("emoji")
    # small pictures were not left out then; today's default is 16
    assert config.data.min_px == 1 and config.data.crop == "center"
    assert config.unet.width == 64 and config.sample.spacing == "leading"
    settings = task_settings(config)
    assert settings.context_width == 128 and settings.null_class
    assert settings.tokenizer.max_length == 24
