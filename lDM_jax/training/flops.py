"""Floating-point operations of a function, read off its jaxpr.

Owns `count`. Only matrix products and convolutions count, a multiply-add being two
operations; what else a network does is a percent of them. Nothing is compiled and
nothing is allocated. The conventions:

    dot_general            2 x output elements x contracted elements
    conv_general_dilated   2 x output elements x kernel taps x input channels a group
    fused attention        as its two products, q k^T and p v: 4 b h n m d

All kernel taps count at every output position, also those that fall on padding or into
the holes of a dilated input, as compilers for matrix units run them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

from lDM_jax.models import cpu_kernels


def count(function: Callable, *args: Any) -> int:
    """Operations of `function(*args)`; args are arrays or `jax.ShapeDtypeStruct`s.

    A scan counts its body once a step; of the branches of a `cond` the dearest counts.
    Raises ValueError for a `while` loop with products inside: its length is not known.
    """
    with cpu_kernels.plain():
        # a new function: what was traced before may have been of another kind
        jaxpr = jax.make_jaxpr(lambda *args: function(*args))(*args)
    return _jaxpr(jaxpr.jaxpr)


def _jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: core.JaxprEqn) -> int:
    kind, params = equation.primitive.name, equation.params
    if kind in PRIMITIVES:
        return PRIMITIVES[kind](equation)
    inner = [_jaxpr(jaxpr) for jaxpr in _nested(params)]
    if kind == "cond":
        return max(inner)
    if kind == "while" and any(inner):
        raise ValueError("a while loop of unknown length holds matrix products")
    return params["length"] * sum(inner) if kind == "scan" else sum(inner)


def _nested(params: dict) -> Iterator[core.Jaxpr]:
    """Every jaxpr among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _product(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    outputs = math.prod(equation.outvars[0].aval.shape)
    return 2 * outputs * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    kernel = equation.invars[1].aval.shape
    output_axis = equation.params["dimension_numbers"].rhs_spec[0]
    outputs = math.prod(equation.outvars[0].aval.shape)
    return 2 * outputs * math.prod(kernel) // kernel[output_axis]


def _fused_attention(equation: core.JaxprEqn) -> int:
    query, key = (variable.aval.shape for variable in equation.invars[:2])
    # Layout 0 is "b n h d", 1 is "b h n d".
    keys = key[1 + equation.params["layout"]]
    return 4 * math.prod(query) * keys


PRIMITIVES = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _fused_attention,
}

# Dense bf16 operations a second of one device, as vendors publish them.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_of(devices: Sequence[Any]) -> float:
    """Operations a second of all these devices; 0 where their kind is not known."""
    kind = devices[0].device_kind
    names = [name for name in PEAKS if kind.startswith(name)]
    return len(devices) * PEAKS[max(names, key=len)] if names else 0.0
