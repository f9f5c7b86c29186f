import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax.data import BadImage, DataConfig, open_source
from diffusion_jax.errors import UserError


def png(level: int) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (level,) * 3).save(file, "PNG")
    file.seek(0)
    return file


def prepare(name: str, data_dir, features: dict, examples: list[dict]):
    """Writes a TFDS data set with one split, "train"."""

    def info(builder):
        return tfds.core.DatasetInfo(builder=builder, features=tfds.features.FeaturesDict(features))

    methods = {
        "VERSION": tfds.core.Version("1.2.3"),
        "_info": info,
        "_split_generators": lambda builder, manager: {"train": builder._generate_examples()},
        "_generate_examples": lambda builder: ((str(key), example) for key, example in enumerate(examples)),
    }
    with tfds.core.registered.skip_registration():  # only the files are to be found afterwards
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), methods)
    builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    image = tfds.features.Image(shape=(None, None, 3))
    label = tfds.features.ClassLabel(names=["low", "high"])
    prepare("greys", folder, {"image": image, "label": label}, [{"image": png(i), "label": i // 3} for i in range(6)])
    prepare("bare", folder, {"image": image}, [{"image": png(1)}])
    prepare("words", folder, {"text": tfds.features.Text()}, [{"text": "a"}])
    prepare("damaged", folder, {"image": image, "label": label}, [{"image": b"no image", "label": 0}])
    prepare("hidden", folder, {"image": image, "label": label}, [{"image": png(1), "label": -1}])
    return str(folder)


def opened(name: str, data_dir: str, split: str = "train"):
    return open_source(DataConfig(name=f"tfds:{name}", image_size=4, split=split, data_dir=data_dir))


def test_records(data_dir):
    source = opened("greys", data_dir)
    assert source.class_names == ("low", "high") and source.num_classes == 2
    assert (len(source), source.image_shape) == (6, (4, 4, 3))
    records = [source[i] for i in range(6)]
    assert sorted((int(r["image"].max()), int(r["label"])) for r in records) == [(i, i // 3) for i in range(6)]
    assert records[0]["image"].shape == (4, 4, 3) and records[0]["image"].dtype == np.uint8
    assert records[0]["label"].dtype == np.int32
    expected = "tfds:greys/1.2.3 split=train images=6 classes=2 size=4 channels=3 crop=adm orientation=exif"
    assert source.identity == expected
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["image"], records[2]["image"])


def test_slices_of_splits_and_versions(data_dir):
    assert len(opened("greys", data_dir, "train[:50%]")) == 3
    assert len(opened("greys:1.2.3", data_dir, "all")) == 6


def test_unlabelled_images_are_one_class(data_dir):
    source = opened("bare", data_dir)
    assert (source.class_names, source[0]["label"]) == (("unlabelled",), 0)


def test_tensorflow_is_not_imported(data_dir):
    code = (
        "import sys\n"
        "from diffusion_jax.data import DataConfig, open_source\n"
        f"source = open_source(DataConfig(name='tfds:greys', image_size=4, data_dir={data_dir!r}))\n"
        "assert source[0]['image'].shape == (4, 4, 3)\n"
        "assert 'tensorflow_datasets' in sys.modules\n"
        "sys.exit('tensorflow' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unprepared_set_names_the_command(data_dir):
    with pytest.raises(UserError, match=r"tfds:cifar10: not prepared in .*; with the extra .* run: tfds build cifar10"):
        opened("cifar10", data_dir)


def test_set_without_random_access(tmp_path):
    """A set prepared as TFRecord files, TFDS's default, told by its metadata."""
    prepare("greys", tmp_path, {"image": tfds.features.Image(shape=(None, None, 3))}, [{"image": png(1)}])
    info = tmp_path / "greys/1.2.3/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    (records,) = tmp_path.glob("greys/1.2.3/*array_record*")
    records.rename(str(records).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"tfds:greys: prepared without random access; .* run: tfds convert_format"):
        opened("greys", str(tmp_path))


def test_unknown_set(data_dir):
    with pytest.raises(UserError, match=r"^data.name=tfds:cifar11: unknown to TFDS, and not prepared in .*$"):
        opened("cifar11", data_dir)


def test_unknown_split(data_dir):
    with pytest.raises(UserError, match=r"data.split='test' of tfds:greys: Unknown split .* \['train'\]"):
        opened("greys", data_dir, "test")


def test_set_without_images(data_dir):
    with pytest.raises(UserError, match=r"tfds:words: has no feature 'image' \(it has text\)"):
        opened("words", data_dir)


def test_damaged_record_is_named(data_dir):
    with pytest.raises(BadImage, match=r"record 0 of tfds:damaged: cannot be read"):
        opened("damaged", data_dir)[0]


def test_hidden_label_is_refused(data_dir):
    with pytest.raises(UserError, match=r"record 0 of tfds:hidden: has no label"):
        opened("hidden", data_dir)[0]
