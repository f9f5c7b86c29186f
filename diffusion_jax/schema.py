"""What a config section may hold: the keyword arguments of the constructor it names, with their types."""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.imports import import_class

Options = Mapping[str, Any]
"""Keys of a config section with their values."""

REQUIRED = inspect.Parameter.empty

# A float that may be infinite, such as the open end of an interval; NaN it may not be.
OpenFloat = Annotated[float, "may be infinite"]


@dataclasses.dataclass(frozen=True)
class Option:
    """One key of a section.

    Attributes:
      annotation: its type, as annotated in the constructor.
      default: its default, or `REQUIRED`.
    """

    annotation: Any
    default: Any


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of a config.

    Attributes:
      constructors: what the section can build, by the value of its key `name`; or one constructor, whose arguments are
        all the keys there are.
      context: arguments that the program supplies because they follow from other sections; not keys.
      default: the `name` of a section that a config leaves out; None where it must choose.
      importable: what a class must derive from to be named as "package.module:Class"; None allows no such names.
      identity: the keys that decide the numbers of a run, which resumes only where they agree; None means all keys.
      changeable: keys among them that may take other values in a run that goes on, if the user says so.
      free: keys that change memory or speed and not numbers, where `identity` is None.
    """

    constructors: Mapping[str, Callable[..., Any]] | Callable[..., Any]
    context: frozenset[str] = frozenset()
    default: str | None = None
    importable: type | None = None
    identity: frozenset[str] | None = None
    changeable: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()

    def constructor(self, place: str, values: Options) -> Callable[..., Any]:
        """The constructor that the section's values ask for; `UserError` if there is none of that name."""
        if not isinstance(self.constructors, Mapping):
            return self.constructors
        name = values.get("name", self.default)
        if self.importable and isinstance(name, str) and ":" in name:
            return import_class(f"{place}.name", name, self.importable)
        if not isinstance(name, str) or name not in self.constructors:
            raise UserError(f"{place}.name={name!r} is not known{did_you_mean(str(name), self.constructors)}")
        return self.constructors[name]

    def decides(self, key: str) -> bool:
        """Whether a key decides the numbers of a run."""
        return key not in self.free if self.identity is None else key in self.identity

    def options(self, constructor: Callable[..., Any]) -> dict[str, Option]:
        """The keys that a constructor reads, from its signature."""
        hints = typing.get_type_hints(_function(constructor), include_extras=True)
        return {
            name: Option(hints.get(name, Any), parameter.default)
            for name, parameter in _parameters(constructor).items()
            if name not in self.context
        }

    def complete(self, place: str, values: Options) -> dict[str, Any]:
        """Checks a section and adds the defaults of the keys it does not mention.

        Args:
          place: the section's name, for errors.
          values: the section as written.

        Returns:
          Every key the constructor reads, plus `name` where one was chosen by name.

        Raises:
          UserError: an unknown or missing key, an unknown name, or a value of another type.
        """
        constructor = self.constructor(place, values)
        options = self.options(constructor)
        by_name = isinstance(self.constructors, Mapping)
        complete = {"name": values.get("name", self.default)} if by_name else {}
        for key in values:
            if key not in options and not (by_name and key == "name"):
                raise UserError(
                    f"{place}.{key} is not an option of {_title(place, values)}{did_you_mean(key, options)}"
                )
        for key, option in options.items():
            if key not in values and option.default is REQUIRED:
                raise UserError(f"{place}.{key} is missing: {_title(place, values)} needs it")
            value = values.get(key, option.default)
            complete[key] = convert(f"{place}.{key}", value, option.annotation)
        return complete

    def build(self, place: str, values: Options, **context: Any) -> Any:
        """Calls the constructor that a completed section names.

        Args:
          place: the section's name, for errors.
          values: the section.
          **context: the arguments in `context`; those the constructor does not take are left out.

        Returns:
          Whatever the constructor returns.
        """
        constructor = self.constructor(place, values)
        taken = _parameters(constructor)
        options = {key: value for key, value in self.complete(place, values).items() if key in taken}
        return constructor(**options, **{key: value for key, value in context.items() if key in taken})


def _function(constructor: Callable[..., Any]) -> Callable[..., Any]:
    # Not the signature of the class: the metaclass of NNX modules hides the arguments.
    return constructor.__init__ if inspect.isclass(constructor) else constructor


def _parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(_function(constructor)).parameters
    return {
        name: parameter
        for name, parameter in parameters.items()
        if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _title(place: str, values: Options) -> str:
    return f"{place} '{values['name']}'" if "name" in values else f"section '{place}'"


def describe(annotation: Any) -> str:
    """A type as a user would say it: "int", "float or None", "one of 'a', 'b'"."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(choice) for choice in typing.get_args(annotation))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(annotation))
    if origin is Annotated:
        return describe(typing.get_args(annotation)[0])
    if annotation is type(None):
        return "None"
    return getattr(annotation, "__name__", str(annotation)) if origin is None else str(annotation)


def convert(place: str, value: Any, annotation: Any) -> Any:
    """Checks a config value against a type annotation.

    Args:
      place: the key, for errors.
      value: the value; lists stand for tuples and integers for floats.
      annotation: int, float, OpenFloat, bool, str, None, Literal, tuple[...], a union of these, or Any.

    Returns:
      The value as that type.

    Raises:
      UserError: the value is of another type, not among the choices, or not finite.
    """
    try:
        return _convert(value, annotation)
    except TypeError:
        if _holds_no_number(value):
            raise UserError(f"{place}={value!r} must be finite: {describe(annotation)}") from None
        hint = ""
        if typing.get_origin(annotation) is typing.Literal and isinstance(value, str):
            hint = did_you_mean(value, [str(choice) for choice in typing.get_args(annotation)])
        raise UserError(f"{place}={value!r} must be {describe(annotation)}{hint}") from None


def _holds_no_number(value: Any) -> bool:
    """Whether a value is or contains a float that is infinite or NaN."""
    if isinstance(value, list | tuple):
        return any(_holds_no_number(item) for item in value)
    return isinstance(value, float) and not math.isfinite(value)


def _convert(value: Any, annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            try:
                return _convert(value, choice)
            except TypeError:
                continue
    elif origin is typing.Literal:
        if value in arguments and type(value) in {type(choice) for choice in arguments}:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return tuple(_convert(item, arguments[0]) for item in value)
            if len(arguments) == len(value):
                return tuple(_convert(item, each) for item, each in zip(value, arguments, strict=True))
    elif origin is Annotated:
        if annotation == OpenFloat and isinstance(value, float) and math.isinf(value):
            return value
        return _convert(value, arguments[0])
    elif annotation is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif annotation is type(None):
        if value is None:
            return None
    elif isinstance(value, bool) and annotation is not bool:
        pass  # a bool is an int in Python, but True is not a number of steps
    elif isinstance(annotation, type) and isinstance(value, annotation):
        return value
    raise TypeError(f"{value!r} is not {annotation}")
