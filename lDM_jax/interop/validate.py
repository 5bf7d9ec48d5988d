"""Values out of other programs' settings, checked: what a file says may be anything.

Owns the reading of single values from plain tables (of a YAML, of a JSON). Every wrong
value is a UserError of one line that names its key; nothing is guessed or converted,
but for a number that YAML took for a text ("1e-4", which has no dot).
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from lDM_jax.core.errors import UserError

LARGEST = 2**24  # of any extent, count or width


def show(value: Any) -> str:
    """A value inside a message; containers only by their type."""
    plain = isinstance(value, int | float | str | None)
    return repr(value) if plain else f"a {type(value).__name__}"


def require(good: Any, key: str, value: Any, what: str) -> None:
    """UserError that says what a value should be, unless it is good."""
    if not good:
        raise UserError(f"{key} = {show(value)} should be {what}")


def table(values: Mapping, key: str) -> Mapping:
    """A table of values."""
    entry = values.get(key)
    require(isinstance(entry, Mapping), key, entry, "a table of values")
    return entry


def demand(values: Mapping, allowed: Mapping[str, tuple], where: str) -> None:
    """UserError for a key that is there with another value than the allowed ones."""
    for key, options in allowed.items():
        if key not in values:
            continue
        value = values[key]
        plain = isinstance(value, int | float | str | None)
        if not plain or value not in options:
            raise UserError(
                f"{where}{key} = {show(value)} is not supported; supported: "
                + ", ".join(map(repr, options))
            )


def demand_known(
    values: Mapping, known: set[str], where: str, *, newer: bool = False
) -> None:
    """UserError for keys that are not known.

    newer: keys of a newer release that are private ("_..") or switched off (None, 0)
    ask for nothing.
    """
    unknown = sorted(
        str(key)
        for key in values.keys() - known
        if not newer or (values[key] and not str(key).startswith("_"))
    )
    if unknown:
        raise UserError(f"{where} has unknown keys: {', '.join(unknown)}")


def whole(value: Any) -> bool:
    """True for a positive integer that an extent can be."""
    return type(value) is int and 0 < value < LARGEST


def integer(values: Mapping, key: str, default: int | None = None) -> int:
    """A positive integer."""
    value = values.get(key, default)
    require(whole(value), key, value, "a positive integer")
    return value


def integers(values: Mapping, key: str, *, empty: bool = False) -> list[int]:
    """A list of positive integers."""
    entry = values.get(key)
    good = isinstance(entry, list | tuple) and (entry or empty)
    good = good and all(map(whole, entry))
    require(good, key, entry, "a list of positive integers")
    return list(entry)


def a_level(values: Mapping, key: str, levels: int, default: int) -> list[int]:
    """One positive integer a level, from such a list or from one number for all."""
    value = values.get(key)
    value = default if value is None else value
    entries = [value] * levels if whole(value) else value
    good = isinstance(entries, list | tuple) and len(entries) == levels
    good = good and all(map(whole, entries))
    require(good, key, value, f"a positive integer, or {levels} of them")
    return list(entries)


def number(values: Mapping, key: str, default: float | None = None) -> float:
    """A positive number below 1e6."""
    value = values.get(key, default)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    good = type(value) in (int, float) and 0 < value < 1e6
    require(good, key, value, "a positive number")
    return float(value)


def rate(values: Mapping, key: str) -> float:
    """A number in [0, 1), 0 where the key is absent."""
    value = values.get(key, 0.0)
    good = type(value) in (int, float) and 0 <= value < 1
    require(good, key, value, "a number in [0, 1)")
    return float(value)


def switch(values: Mapping, key: str, default: bool = False) -> bool:
    """True or false."""
    value = values.get(key, default)
    require(type(value) is bool, key, value, "true or false")
    return value


def text(values: Mapping, key: str, default: str | None = None) -> str:
    """A text."""
    value = values.get(key, default)
    require(isinstance(value, str), key, value, "a text")
    return value


def choice(
    values: Mapping, key: str, options: Mapping[str, Any] | tuple, default: str
) -> Any:
    """options[value of the key], or one of a tuple of options."""
    value = values.get(key, default)
    if not isinstance(value, str) or value not in options:
        raise UserError(
            f"{key} = {show(value)} is not supported; valid: {', '.join(options)}"
        )
    return options[value] if isinstance(options, Mapping) else value


def target(values: Mapping, key: str) -> tuple[str, Mapping]:
    """(target, params) of a table {target: .., params: ..} of the original program."""
    entry = table(values, key)
    params = entry.get("params")
    params = {} if params is None else params
    require(isinstance(params, Mapping), f"{key}.params", params, "a table of values")
    return text(entry, "target"), params


def names(config: Mapping, key: str, valid: tuple[str, ...], count: int) -> list[str]:
    """A list of `count` names, each of them valid."""
    entry = config.get(key)
    good = isinstance(entry, list | tuple) and len(entry) == count
    if not good or any(name not in valid for name in entry):
        raise UserError(
            f"config.json: {key} should be {count} of {' and '.join(valid)}"
        )
    return list(entry)
