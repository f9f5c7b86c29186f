import os
import pickle

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.data.folder import ImageFolder
from diffusion_jax.data.sources import BadImage
from diffusion_jax.data.transforms import ImageDecoder
from diffusion_jax.errors import UserError


def save(path, value: int = 0, size: int = 4):
    """An image of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value,) * 3).save(path, "PNG")


def opened(path, split: str = "train", **options):
    return open_source(DataConfig(name=f"folder:{path}", split=split, image_size=4, **options))


def contents(source) -> list[tuple[int, int]]:
    """(grey level, label) of each record."""
    return [(int(record["image"][0, 0, 0]), int(record["label"])) for record in (source[i] for i in range(len(source)))]


def test_class_folders_in_name_order(tmp_path):
    for number, name in enumerate(["dog/b.png", "dog/a.JPEG", "cat/deep/er/z.webp", "cat/x.jpg", "Ant/1.png"]):
        save(tmp_path / name, number)
    for ignored in ("dog/notes.txt", "dog/._a.jpg", ".cache/x.png", "labels.csv", "cat/video.gif"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_bytes(b"ignored")
    source = opened(tmp_path)
    assert source.passed_over == {".txt": 1, ".csv": 1, ".gif": 1}
    assert source.class_names == ("Ant", "cat", "dog")
    assert (source.num_classes, len(source), source.image_shape) == (3, 5, (4, 4, 3))
    assert contents(source) == [(4, 0), (2, 1), (3, 1), (1, 2), (0, 2)]
    record = source[1]
    assert record["image"].shape == (4, 4, 3) and record["image"].dtype == np.uint8
    assert record["label"].dtype == np.int32


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    for number in range(20):
        save(tmp_path / f"{number % 3}" / f"{number}.png", number)
    forwards = opened(tmp_path)
    scandir = os.scandir

    class Backwards:
        def __init__(self, folder):
            self.entries = list(scandir(folder))[::-1]

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    backwards = opened(tmp_path)
    assert contents(backwards) == contents(forwards)
    assert backwards.identity == forwards.identity


def test_names_of_any_bytes(tmp_path):
    for number, name in enumerate([b"caf\xc3\xa9", b"caf\xe9", "日本".encode()]):
        os.mkdir(os.path.join(os.fsencode(tmp_path), name))
        path = os.path.join(os.fsencode(tmp_path), name, b"a b\n\xff.png")
        Image.new("RGB", (4, 4), (number,) * 3).save(os.fsdecode(path))
    assert sorted(grey for grey, _ in contents(opened(tmp_path))) == [0, 1, 2]


def test_loose_images_are_one_unlabelled_class(tmp_path):
    save(tmp_path / "b.png", 2)
    save(tmp_path / "a.png", 1)
    source = opened(tmp_path)
    assert source.class_names == ("unlabelled",)
    assert contents(source) == [(1, 0), (2, 0)]


def test_a_single_image_is_a_data_set(tmp_path):
    save(tmp_path / "only.png", 9)
    assert contents(opened(tmp_path)) == [(9, 0)]


def test_split_folders(tmp_path):
    save(tmp_path / "train/a/1.png", 1)
    save(tmp_path / "test/a/2.png", 2)
    assert contents(opened(tmp_path, "train")) == [(1, 0)]
    assert contents(opened(tmp_path, "test")) == [(2, 0)]
    save(tmp_path / "annotations/readme/3.png", 3)
    assert contents(opened(tmp_path, "train")) == [(1, 0)]
    with pytest.raises(UserError, match=r"data.split='tst': .* has no such folder"):
        opened(tmp_path, "tst")


def test_split_that_a_divided_folder_lacks(tmp_path):
    save(tmp_path / "train/a/1.png")
    save(tmp_path / "test/a/2.png")
    with pytest.raises(UserError, match=r"data.split='all': .* has no such folder; known: test, train"):
        opened(tmp_path, "all")


def test_undivided_folder_is_its_own_train_and_all_split(tmp_path):
    save(tmp_path / "a/1.png", 1)
    assert contents(opened(tmp_path, "train")) == contents(opened(tmp_path, "all")) == [(1, 0)]
    with pytest.raises(UserError, match=r"data.split='test': .* data.split=all reads all"):
        opened(tmp_path, "test")


@pytest.mark.parametrize(
    ("training", "testing"), [("Train", "Test"), ("training", "testing"), ("TRAINING", "validation"), ("train", "Val")]
)
def test_split_folders_under_other_names(tmp_path, training, testing):
    save(tmp_path / training / "a/1.png", 1)
    save(tmp_path / testing / "b/2.png", 2)
    source = opened(tmp_path, "train")
    assert contents(source) == [(1, 0)] and source.class_names == ("a",)
    split = "test" if testing.lower().startswith("test") else "val"
    assert contents(opened(tmp_path, split)) == contents(opened(tmp_path, testing)) == [(2, 0)]


def test_a_split_that_may_be_either_of_two_folders(tmp_path):
    for number, name in enumerate(["train", "val", "validation"]):
        save(tmp_path / name / "a/1.png", number)
    assert contents(opened(tmp_path, "val")) == [(1, 0)] and contents(opened(tmp_path, "validation")) == [(2, 0)]
    with pytest.raises(
        UserError, match=r"data\.split='valid': may be any of val, validation in .*; name it as written"
    ):
        opened(tmp_path, "valid")


@pytest.mark.parametrize("folders", [("images/train/a", "images/val/a"), ("a/Training", "a/testing")])
def test_splits_a_level_down_are_refused(tmp_path, folders):
    for folder in folders:
        save(tmp_path / folder / "1.png")
    (tmp_path / "annotations").mkdir()
    above = tmp_path / folders[0].split("/")[0]
    splits = ", ".join(folder.split("/")[1] for folder in folders)
    with pytest.raises(UserError, match=rf"^{above}: holds the splits {splits}, .* \(data\.name=folder:{above}\)"):
        opened(tmp_path)


def test_a_class_may_hold_one_folder_named_like_a_split(tmp_path):
    save(tmp_path / "vehicles/train/1.png", 1)
    save(tmp_path / "vehicles/plane/2.png", 2)
    save(tmp_path / "Training/3.png", 3)  # a class of photographs of training
    assert sorted(contents(opened(tmp_path))) == [(1, 1), (2, 1), (3, 0)]


def test_train_may_be_a_class_of_vehicles(tmp_path):
    save(tmp_path / "train/1.png", 1)
    save(tmp_path / "bicycle/2.png", 2)
    source = opened(tmp_path, "train")
    assert source.class_names == ("bicycle", "train")
    assert contents(source) == [(2, 0), (1, 1)]


def test_identity_tells_listings_and_settings_apart(tmp_path):
    save(tmp_path / "one/a/1.png")
    save(tmp_path / "two/one/a/1.png")
    first = opened(tmp_path / "one")
    assert first.identity.startswith("folder:one split=train images=1 classes=1 listing=")
    assert first.identity.endswith("size=4 channels=3 crop=adm orientation=exif")
    assert opened(f"{tmp_path}/two/one/").identity == first.identity
    assert opened(tmp_path / "one", exif_orientation=False).identity != first.identity
    os.rename(tmp_path / "one/a/1.png", tmp_path / "one/a/2.png")
    assert opened(tmp_path / "one").identity != first.identity


def test_it_survives_pickling(tmp_path):
    for number in range(3):
        save(tmp_path / f"a/{number}.png", number)
    source = ImageFolder(str(tmp_path), "all", ImageDecoder(4, 1))
    copy = pickle.loads(pickle.dumps(source))
    assert contents(copy) == contents(source)
    assert (copy.identity, copy.path(2)) == (source.identity, str(tmp_path / "a/2.png"))


def test_home_is_expanded(tmp_path, monkeypatch):
    save(tmp_path / "photos/a.png", 5)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert contents(opened("~/photos")) == [(5, 0)]


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"data.name=folder:.*/nowhere: cannot list .*/nowhere \(No such file"):
        opened(tmp_path / "nowhere")


def test_file_in_place_of_folder(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"cannot list .*a.png \(Not a directory\)"):
        opened(tmp_path / "a.png")


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"no \.jpg, \.jpeg, \.png, \.webp file and no class folder"):
        opened(tmp_path)


def test_empty_class_folder(tmp_path):
    save(tmp_path / "a/1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"/b: no .* file in this class folder"):
        opened(tmp_path)


def test_images_beside_class_folders(tmp_path):
    save(tmp_path / "a/1.png")
    save(tmp_path / "stray.png")
    with pytest.raises(UserError, match=r"holds both images \(stray.png\) and folders \(a\)"):
        opened(tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path):
    save(tmp_path / "elsewhere/1.png", 1)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere")
    assert contents(opened(tmp_path / "set")) == [(1, 0)]
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "set/a")
    with pytest.raises(UserError, match=r"a link to a folder that contains it"):
        opened(tmp_path / "set")


@pytest.fixture
def damaged(tmp_path):
    """Grey levels 0 … 5, of which 1, 2 and 5 are unreadable in three ways."""
    for number in range(6):
        save(tmp_path / f"a/{number}.png", number)
    data = (tmp_path / "a/1.png").read_bytes()
    (tmp_path / "a/1.png").write_bytes(data[:-30])
    (tmp_path / "a/2.png").write_bytes(b"not an image")
    (tmp_path / "a/5.png").unlink()
    (tmp_path / "a/5.png").symlink_to("gone.png")
    return tmp_path


def test_bad_images_stop_and_are_named(damaged):
    source = opened(damaged)
    for number, reason in {1: "truncated", 2: "not a JPEG, PNG or WebP image", 5: "No such file"}.items():
        with pytest.raises(BadImage, match=rf"/a/{number}\.png: cannot be read \(.*{reason}.*\); repair or remove"):
            source[number]


def test_bad_images_are_replaced_by_the_next_and_counted(damaged):
    source = opened(damaged, on_bad_image="skip")
    assert contents(source) == [(0, 0), (3, 0), (3, 0), (3, 0), (4, 0), (0, 0)]
    assert [source[i]["bad_images"] for i in range(6)] == [0, 2, 1, 0, 0, 1]
    assert source.identity == opened(damaged).identity


def test_only_bad_images(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 images in a row are unreadable, the last being .*/0.png"):
        opened(tmp_path, on_bad_image="skip")[1]
