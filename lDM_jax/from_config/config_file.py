"""A config from its file, for tools that read no absl flags.

`train.py` takes `--config=FILE:ARGUMENT --config.section.key=value`; tools take
`--config FILE:ARGUMENT --set section.key=value` and mean the same.
"""

import ast
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.from_config import datasets


def read_config(name: str, changes: Sequence[str]) -> ConfigDict:
    """The config of a file "path.py:argument", with "section.key=value" applied.

    A config file is Python and is executed. What it leaves to its data is filled in
    (`datasets.resolve`). UserError for what cannot be read, and for a key that the
    config does not have.
    """
    path, _, arg = name.partition(":")
    if not Path(path).is_file():
        raise UserError(f"no config file at {path}")
    sys.path.insert(0, str(Path(path).resolve().parent.parent))  # for `configs`
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        config = module.get_config(arg)
    except ValueError as error:
        raise UserError(str(error)) from None
    return change(config, changes)


def change(config: ConfigDict, changes: Sequence[str]) -> ConfigDict:
    """Apply "section.key=value" to a config, in place, and resolve it; the config."""
    for change in changes:
        key, equals, text = change.partition("=")
        try:
            old = config
            for part in key.split("."):
                old = old[part]
            value = text if isinstance(old, str) else ast.literal_eval(text)
            config.update_from_flattened_dict({key: value})
        except (KeyError, AttributeError, SyntaxError, TypeError, ValueError) as error:
            what = "" if equals else " (write KEY=VALUE)"
            raise UserError(f"--set {change}{what}: {error}") from None
    return datasets.resolve(config)
