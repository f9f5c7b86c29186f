"""Checks of configured values."""

from typing import get_args

from diffusion_jax.errors import UserError, did_you_mean


def check_choice(what: str, value: str, choices: object) -> None:
    """Raises a `UserError` unless `value` is one of the strings of the Literal type `choices`."""
    if value not in get_args(choices):
        raise UserError(f"{what}: unknown '{value}'{did_you_mean(value, get_args(choices))}")
