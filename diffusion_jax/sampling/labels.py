"""The classes of samples, from the words of a user."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from diffusion_jax import keys
from diffusion_jax.errors import UserError, did_you_mean

BALANCED = "balanced"
UNIFORM = "uniform"

# Names that a message lists; of more classes it says the first ones.
LISTED = 20


def choose_labels(
    labelled: bool, text: str | None, num: int, num_classes: int, seed: int, class_names: Sequence[str] = ()
) -> np.ndarray:
    """The classes of `num` samples, as `parse_labels`: balanced where `text` is None, and 0 for samples without labels.

    Raises:
      UserError: labels are asked of an unconditional model, or are not its classes.
    """
    if labelled:
        return parse_labels(BALANCED if text is None else text, num, num_classes, seed, class_names)
    if text is not None:
        raise UserError(f"--labels {text}: this run was trained without a condition and takes no class: leave it out")
    return np.zeros(num, np.int32)


def parse_labels(text: str, num: int, num_classes: int, seed: int, class_names: Sequence[str] = ()) -> np.ndarray:
    """The classes of `num` samples.

    Args:
      text: "balanced" (0, 1, … K−1, 0, …), "uniform" (independent draws), or a list, repeated, of numbers "3", ranges
        "0-9" and names of classes: "3,3,7", "cat,dog", "cat,5-7". What is a number or range of classes is taken as
        such, even if a class has that name; otherwise the longest name that fits, which may hold commas.
      num: number of samples.
      num_classes: K.
      seed: of "uniform"; label i is a function of (seed, i).
      class_names: the names of the classes, by label; empty if they have none.

    Returns:
      [num] int32 in 0…K−1.

    Raises:
      UserError: anything else, or a label beyond K−1.
    """
    if text == UNIFORM:
        index = jnp.arange(num)
        draws = keys.uniform(keys.purpose_key(seed, "sample_label"), index)
        return np.minimum(np.asarray(draws * num_classes).astype(np.int32), num_classes - 1)
    if text == BALANCED:
        return np.resize(np.arange(num_classes, dtype=np.int32), num)
    if not text.strip():
        raise UserError(f"--labels is empty: {_known(num_classes, class_names)}")
    labels = [label for part in _parts(text, num_classes, class_names) for label in part]
    return np.resize(np.asarray(labels, np.int32), num)


def _parts(text: str, num_classes: int, class_names: Sequence[str]) -> Iterator[Sequence[int]]:
    """The labels of each part of a list."""
    words = text.split(",")
    numbers = {name: label for label, name in enumerate(class_names)}
    while words:
        numbered = _numbered(words[0].strip())
        if numbered and numbered[-1] < num_classes:
            yield numbered
            words = words[1:]
            continue
        for count in range(len(words), 0, -1):
            name = ",".join(words[:count]).strip()
            if name in numbers:
                yield [numbers[name]]
                words = words[count:]
                break
        else:
            raise UserError(f"--labels {text}: {_unknown(words[0].strip(), bool(numbered), num_classes, class_names)}")


def _numbered(word: str) -> range:
    """The labels that a number or range names; empty if the word is none."""
    first, dash, last = word.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        return range(0)
    return range(int(first), int(last or first) + 1)


def _unknown(word: str, is_number: bool, num_classes: int, class_names: Sequence[str]) -> str:
    """What is wrong with a word, and what could be written."""
    known = _known(num_classes, class_names)
    if is_number:
        return known
    if not class_names:
        return f"write uniform, balanced, a range such as 0-9 or a list such as 3,3,7; {known}"
    nearest = did_you_mean(word, class_names)
    return f"'{word}' is no class{nearest} T{known[1:]}" if nearest.endswith("?") else f"'{word}' is no class; {known}"


def _known(num_classes: int, class_names: Sequence[str]) -> str:
    named = ""
    if class_names:
        more = f", … {len(class_names) - LISTED} more" if len(class_names) > LISTED else ""
        named = f" ({', '.join(class_names[:LISTED])}{more})"
    return f"this model's classes are 0 to {num_classes - 1}{named}"
