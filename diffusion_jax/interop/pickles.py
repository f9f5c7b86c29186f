"""Reads pickles as data: an interpreter of the pickle language that knows containers, numbers, and a table of names.

Python's own unpickler calls whatever a file tells it to call. Here a name in a file is a row of a table, or it is
refused; nothing is imported, and nothing is called but the functions of the table.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NamedTuple

from diffusion_jax.errors import UserError


class Name(NamedTuple):
    """A class or function that a pickle mentions; a pair of words and no more."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque:
    """An object that a table allows but no reader of weights needs: it takes what a file gives it and keeps nothing."""

    def __init__(self, *_: object):
        pass

    def build(self, state: object) -> None:
        """Passes over the state."""


Constructor = Callable[..., Any]
Persistent = Callable[[Any], object]

# What a stream that is no pickle makes of the interpreter's stack.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, AttributeError, EOFError, OverflowError)

_MARK = object()
_PUSH = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_IGNORED = {"PROTO", "FRAME"}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


def read_pickle(
    stream: IO[bytes],
    names: Mapping[Name, Constructor | None],
    source: str,
    persistent: Persistent | None = None,
) -> Any:
    """Reads one pickle and leaves the stream behind it.

    Args:
      stream: with `read` and `readline`.
      names: what a file may mention. A name that maps to a function stands for it where the file calls it; one that
        maps to None may be mentioned, not called. A module and "*" stands for all names of the module.
      source: what errors call the file.
      persistent: what to make of references to things outside the pickle; None refuses them.

    Returns:
      The object: dicts, lists, tuples, sets, strings, numbers, `Name`s, and what the functions of `names` return.

    Raises:
      UserError: the stream is no pickle, or mentions or calls what it may not.
    """
    machine = _Machine(names, source, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: is damaged, or no file of weights ({reason}); fetch it again") from error


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, names: Mapping[Name, Constructor | None], source: str, persistent: Persistent | None):
        self.names = names
        self.source = source
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _IGNORED or opcode == "STOP":
            return
        if opcode in _PUSH:
            stack.append(_PUSH[opcode])
        elif opcode in _LITERALS:
            stack.append(argument)
        elif opcode in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}[opcode]())
        elif opcode == "MARK":
            stack.append(_MARK)
        elif opcode in ("POP", "POP_MARK"):
            self._marked() if opcode == "POP_MARK" else stack.pop()
        elif opcode == "DUP":
            stack.append(stack[-1])
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(opcode[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif opcode in ("TUPLE", "LIST", "FROZENSET"):
            stack.append({"TUPLE": tuple, "LIST": list, "FROZENSET": frozenset}[opcode](self._marked()))
        elif opcode == "DICT":
            stack.append(_pairs(self._marked()))
        elif opcode in ("APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS"):
            self._fill(opcode)
        else:
            self._name_or_call(opcode, argument)

    def _marked(self) -> list[Any]:
        """Takes everything above the last mark, and the mark."""
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _fill(self, opcode: str) -> None:
        """Adds items to the container below them."""
        if opcode == "APPEND":
            items = [self.stack.pop()]
        elif opcode == "SETITEM":
            items = self.stack[-2:]
            del self.stack[-2:]
        else:
            items = self._marked()
        container = self.stack[-1]
        if isinstance(container, Opaque):
            return
        if opcode.startswith("SETITEM"):
            container.update(_pairs(items))
        else:
            container.extend(items) if isinstance(container, list) else container.update(items)

    def _name_or_call(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in ("GLOBAL", "STACK_GLOBAL"):
            if opcode == "GLOBAL":
                module, name = argument.split(" ", 1)
            else:
                name, module = stack.pop(), stack.pop()
            stack.append(self._allowed(Name(str(module), str(name))))
        elif opcode in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif opcode == "BUILD":
            state, thing = stack.pop(), stack[-1]
            if hasattr(type(thing), "build"):
                thing.build(state)
            elif not isinstance(thing, dict):  # the attributes of an ordered dict are of no use here
                raise UserError(f"{self.source}: sets the state of a {type(thing).__name__}, which no weights need")
        elif opcode == "BINPERSID" and self.persistent is not None:
            stack.append(self.persistent(stack.pop()))
        else:
            raise UserError(f"{self.source}: uses the pickle instruction {opcode}, which no file of weights needs")

    def _allowed(self, name: Name) -> Name:
        if name not in self.names and Name(name.module.partition(".")[0], "*") not in self.names:
            raise UserError(
                f"{self.source}: mentions {str(name)[:100]!r}, which no file of weights needs; such a file can run "
                "programs, and is not read"
            )
        return name

    def _call(self, function: object, arguments: object) -> object:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise UserError(f"{self.source}: calls a {type(function).__name__}, which is no function")
        constructor = self.names.get(function, self.names.get(Name(function.module.partition(".")[0], "*")))
        if constructor is None:
            raise UserError(f"{self.source}: calls {function}, which is no function; the file is not read")
        return constructor(*arguments)


def _pairs(items: Iterable[object]) -> dict[object, object]:
    items = list(items)
    return dict(zip(items[::2], items[1::2], strict=True))
