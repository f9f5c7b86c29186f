"""Multiply-adds of a function, counted from its trace."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from diffusion_jax.models.layers.attention_kernels import attention_kernel
from diffusion_jax.parallel.partition import PyTree


def count_macs(function: Callable, *arguments: PyTree) -> int:
    """Counts the multiply-adds of the matrix products and convolutions of a function, loops included.

    A convolution counts every tap of its kernel, those on padding too; a `cond` counts its dearest branch.

    Args:
      function: what to count; it is traced, not run.
      *arguments: its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      Multiply-adds; the "Gflops" of DiT and the GMAC of LDM are 10⁹ of these.

    Raises:
      ValueError: the function has a `while` loop, whose length a trace does not tell.
    """
    with attention_kernel("xla"):  # the products of other kernels are not in the trace
        return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[params["dimension_numbers"].rhs_spec[0]]
        return equation.outvars[0].aval.size * (math.prod(kernel) // out_channels)
    inner = [_count(jaxpr) for jaxpr in _jaxprs(params.values())]
    if name == "while" and any(inner):
        raise ValueError("a while loop has no number of steps to count: use jax.lax.scan")
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(values: Iterable[object]) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
