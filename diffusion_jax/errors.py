"""The error that a user can cause and mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input, as one line that names the thing, the place and the remedy.

    The command line prints the message and exits with status 2; a traceback is shown only under `--debug`.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Ends an error message about an unknown name with the nearest valid one.

    Args:
      word: the name that was not recognised.
      known: the names that would have been.

    Returns:
      `"; did you mean 'x'?"` when some known name is close, else `"; known: a, b, c"`.
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
