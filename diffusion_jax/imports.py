"""Classes of the user's own, named in a config as "package.module:Class"."""

import importlib

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
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise UserError(f"{place}={name!r}: a class of your own is named 'package.module:Class'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that the user's own one wants: the traceback shows where
        raise UserError(
            f"{place}={name!r}: Python finds no module '{error.name}'; put its folder in the environment variable "
            "PYTHONPATH"
        ) from None
    fitting = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
    if class_name not in fitting:
        raise UserError(
            f"{place}={name!r}: {module_name} has no class of that name derived from {base.__name__}"
            f"{did_you_mean(class_name, fitting)}"
        )
    return vars(module)[class_name]
