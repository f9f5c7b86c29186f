"""Data sets prepared by TensorFlow Datasets, read at random and without TensorFlow."""

import numpy as np

from diffusion_jax.data.folder import UNLABELLED
from diffusion_jax.data.transforms import ImageDecoder
from diffusion_jax.errors import UserError
from diffusion_jax.records import Record, RecordSpec, image_records


class Tfds:
    """The features "image" and "label" of a TFDS data set; without a class label, one class "unlabelled" of label 0.

    Args:
      name: what `tfds.builder` takes, such as "cifar10" or "imagenet2012:5.1.0".
      split: a split, or a slice of one such as "train[:10%]".
      decode: turns an encoded image into an array.
      data_dir: where prepared data sets lie; None is TFDS's own default.

    Raises:
      UserError: the data set is unknown, not prepared in a format with random access, or has no such split or image.
    """

    def __init__(self, name: str, split: str, decode: ImageDecoder, data_dir: str | None = None):
        import tensorflow_datasets as tfds

        self._name, self._decode = f"tfds:{name}", decode
        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except tfds.core.registered.DatasetNotFoundError:
            place = data_dir or tfds.core.constants.DATA_DIR
            raise UserError(f"data.name=tfds:{name}: unknown to TFDS, and not prepared in {place}") from None
        if not builder.info.splits:
            raise UserError(
                f"data.name=tfds:{name}: not prepared in {builder.data_dir}; with the extra diffusion_jax[tf], run: "
                f"tfds build {name} --file_format=array_record" + (f" --data_dir={data_dir}" if data_dir else "")
            )
        features = dict(builder.info.features.items())
        if not isinstance(features.get("image"), tfds.features.Image):
            raise UserError(f"data.name=tfds:{name}: has no feature 'image' (it has {', '.join(features)})")
        try:
            self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError:
            raise UserError(
                f"data.name=tfds:{name}: prepared without random access; with the extra diffusion_jax[tf], run: "
                f"tfds convert_format --dataset_version_dir={builder.data_dir} --out_file_format=array_record"
            ) from None
        except ValueError as error:
            raise UserError(f"data.split={split!r} of tfds:{name}: {' '.join(str(error).split())}") from None
        label = features.get("label")
        self._labelled = isinstance(label, tfds.features.ClassLabel)
        self.class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else (UNLABELLED,)
        self.num_classes = len(self.class_names)
        self.image_shape = decode.image_shape
        self.record_spec: RecordSpec = image_records(self.image_shape)
        self.identity = (
            f"tfds:{builder.info.full_name} split={split} images={len(self)} classes={self.num_classes} {decode}"
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        label = record["label"] if self._labelled else 0
        if label < 0:
            raise UserError(f"record {index} of {self._name}: has no label; choose another data.split")
        return {"image": self._decode(record["image"], f"record {index} of {self._name}"), "label": np.int32(label)}
