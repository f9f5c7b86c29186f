"""A look at a data set before a run: its classes, the files passed over, and images that cannot be read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from diffusion_jax.data.folder import SUFFIXES, ImageFolder, describe_types
from diffusion_jax.data.sources import BadImage, SkipBadImages, Source

# Of a folder of no more images than this, the head of each is read; that takes a second or two.
SMALL_FOLDER = 2000

READING_THREADS = 16

# Names that are listed; of more it says the first ones.
LISTED = 5


def classes_of(source: Source) -> str:
    """The number of classes and the first names, such as "3 classes (cat, dog, frog)"."""
    classes = "class" if source.num_classes == 1 else "classes"
    return f"{source.num_classes:,} {classes} ({_first(source.class_names)})"


def survey(source: Source) -> list[str]:
    """What a user should know of a folder of images before training on it, in lines; none if all is well.

    Args:
      source: any data set; of others than folders nothing is said.

    Returns:
      How many files were passed over, and how many images cannot be read where those are skipped.

    Raises:
      UserError: images of a folder of at most `SMALL_FOLDER` are damaged in their heads, or of a size that the crop
        does not take; it names them.
    """
    folder = source.source if isinstance(source, SkipBadImages) else source
    if not isinstance(folder, ImageFolder):
        return []
    lines = []
    if folder.passed_over:
        files = "file" if folder.passed_over.total() == 1 else "files"
        lines.append(
            f"data: passed over {folder.passed_over.total():,} {files} other than {', '.join(SUFFIXES)}: "
            f"{describe_types(folder.passed_over)}"
        )
    if len(folder) > SMALL_FOLDER:
        return lines
    with ThreadPoolExecutor(READING_THREADS) as pool:
        bad = [error for error in pool.map(folder.check, range(len(folder))) if error is not None]
    if bad and isinstance(source, SkipBadImages):
        count = f"{len(bad):,} of {len(folder):,} images"
        lines.append(f"data: {count} cannot be read, each replaced by the next; the first is {bad[0].name}")
    elif bad:
        more = f" (and {len(bad) - 1:,} more: {_first([each.name for each in bad[1:]])})" if len(bad) > 1 else ""
        raise BadImage.of(bad[0].name, bad[0].reason + more)
    return lines


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:LISTED], "…"] if len(names) > LISTED else names)
