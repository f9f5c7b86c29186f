"""What a plan must know of data that need not be there."""

from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError


def planned_facts(data: DataConfig, conditioned: bool, num_classes: int | None) -> DatasetFacts:
    """The facts of a data set without its images.

    Args:
      data: the `data` section.
      conditioned: whether the model reads labels.
      num_classes: number of classes K; None takes what TFDS declares of `tfds:NAME`, counts the classes of data that
        are there, and needs none for a model without condition.

    Returns:
      Facts with classes named by their numbers.

    Raises:
      UserError: the number of classes is needed and not to be found.
    """
    kind, _, name = data.name.partition(":")
    if num_classes is None and not conditioned:
        num_classes = 1
    if num_classes is None and kind == "tfds":
        num_classes = _declared_classes(name, data.data_dir)
    if num_classes is None:
        try:
            num_classes = open_source(data).num_classes
        except UserError as error:
            raise UserError(f"the number of classes is not known ({error}): name it with --classes") from None
    return DatasetFacts(num_classes, tuple(map(str, range(num_classes))), f"plan of {data.name}")


def _declared_classes(name: str, data_dir: str | None) -> int | None:
    """The classes of a TFDS data set that may not be prepared; None if TFDS does not say."""
    import tensorflow_datasets as tfds

    try:
        features = tfds.builder(name, data_dir=data_dir).info.features
    except (tfds.core.registered.DatasetNotFoundError, ValueError):
        return None
    label = dict(features.items()).get("label") if features else None
    return label.num_classes if isinstance(label, tfds.features.ClassLabel) else None
