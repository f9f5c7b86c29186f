"""Imports by name: what users wrote themselves, "package.module:Name", and packages whose names load when asked for."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from diffusion_jax.errors import UserError, did_you_mean


def import_class(place: str, name: str, base: type) -> type:
    """Imports a class by name.

    Configs are also read from checkpoints, which are data. So a name gives nothing but a class of the wanted kind, from
    a module that Python finds by itself.

    Args:
      place: the config key, for errors.
      name: "package.module:Class".
      base: what the class must derive from.

    Returns:
      The class.

    Raises:
      UserError: the name has another form, there is no such module or class, or the class is of another kind.
    """
    return _import(
        place, name, "class", lambda value: isinstance(value, type) and issubclass(value, base), base.__name__
    )


def import_function(place: str, name: str) -> Callable[..., Any]:
    """Imports a function by name; only ever one that the user named on the command line.

    Args:
      place: the flag, for errors.
      name: "package.module:function".

    Returns:
      The function.

    Raises:
      UserError: the name has another form, or there is no such module or function.
    """
    return _import(place, name, "function", lambda value: callable(value) and not isinstance(value, type), None)


def _import(place: str, name: str, kind: str, fits: Callable[[Any], bool], base: str | None) -> Any:
    module_name, _, own_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), own_name)):
        raise UserError(f"{place}={name!r}: a {kind} of your own is named 'package.module:{kind.title()}'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that the user's own one wants: the traceback shows where
        raise UserError(
            f"{place}={name!r}: Python finds no module '{error.name}'; put its folder in the environment variable "
            "PYTHONPATH"
        ) from None
    fitting = [key for key, value in vars(module).items() if fits(value)]
    if own_name not in fitting:
        derived = f" derived from {base}" if base else ""
        raise UserError(
            f"{place}={name!r}: {module_name} has no {kind} of that name{derived}{did_you_mean(own_name, fitting)}"
        )
    return vars(module)[own_name]


def lazy_names(modules: Mapping[str, str]) -> tuple[Callable[[str], Any], list[str]]:
    """The `__getattr__` and `__all__` of a package whose names are imported when they are first asked for.

    Args:
      modules: name to the module that defines it.

    Returns:
      A function that gives the value of a name and raises `AttributeError` for others; and the names.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"there is no '{name}': the names are {', '.join(modules)}")
        return getattr(importlib.import_module(modules[name]), name)

    return get, list(modules)
