"""Sections of plain values -> modules, with readable errors for wrong keys."""

import inspect
from collections.abc import Mapping

import jax.numpy as jnp

from lDM_jax.core.errors import UserError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def construct(kind: type, section: Mapping, name: str):
    """kind(**section) with the dtype looked up. UserError for keys it does not have."""
    section = dict(section)
    if "dtype" in section:
        section["dtype"] = lookup(DTYPES, section["dtype"], f"config.{name}.dtype")
    valid = set(inspect.signature(kind).parameters) - {"parent", "name"}
    unknown = sorted(section.keys() - valid)
    if unknown:
        raise UserError(
            f"config.{name} has unknown keys {unknown}; valid: {sorted(valid)}"
        )
    return kind(**section)


def lookup(table: Mapping, key: str, where: str):
    """table[key], or UserError naming `where` and the valid keys."""
    if key not in table:
        raise UserError(f"{where} = {key!r} is unknown; valid: {', '.join(table)}")
    return table[key]
