import pytest
from PIL import Image

from diffusion_jax.config import load_config
from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.data.survey import SMALL_FOLDER, classes_of, survey
from diffusion_jax.errors import UserError
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.training.loop import train


def save(path, size=(4, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, "PNG", **options)


def opened(path, **options):
    return open_source(DataConfig(f"folder:{path}", 4, **options))


def test_the_first_classes_are_named(tmp_path):
    save(tmp_path / "zebra/1.png")
    assert classes_of(opened(tmp_path)) == "1 class (zebra)"
    for name in "abcd":
        save(tmp_path / name / "1.png")
    assert classes_of(opened(tmp_path)) == "5 classes (a, b, c, d, zebra)"
    save(tmp_path / "e/1.png")
    assert classes_of(opened(tmp_path)) == "6 classes (a, b, c, d, e, …)"


def test_files_of_other_types_are_counted(tmp_path):
    save(tmp_path / "a/1.png")
    assert survey(opened(tmp_path)) == []
    for name in ("a/2.gif", "a/3.GIF", "a/deep/4.bmp", "a/LICENSE", "a/.hidden.gif", "a/5.jfif"):
        save(tmp_path / name)
    (line,) = survey(opened(tmp_path))
    assert line == (
        "data: passed over 5 files other than .jpg, .jpeg, .png, .webp: 2 .gif, 1 without a suffix, 1 .bmp, 1 .jfif"
    )


def test_a_class_of_other_types_alone_is_refused_with_what_it_has(tmp_path):
    save(tmp_path / "a/1.png")
    save(tmp_path / "b/1.tif")
    with pytest.raises(UserError, match=r"/b: no \.jpg, .* file in this class folder \(it has 1 \.tif\)"):
        opened(tmp_path)


@pytest.fixture
def damaged(tmp_path):
    folder = tmp_path / "damaged"
    for number in range(9):
        save(folder / f"a/{number}.png")
    (folder / "a/3.png").write_bytes(b"no image")
    (folder / "a/5.png").write_bytes(b"")
    (folder / "a/7.png").unlink()
    (folder / "a/7.png").symlink_to("gone")
    return folder


def test_all_bad_heads_are_found_at_once(damaged):
    with pytest.raises(UserError) as caught:
        survey(opened(damaged))
    assert str(caught.value) == (
        f"{damaged}/a/3.png: cannot be read (not a JPEG, PNG or WebP image (and 2 more: {damaged}/a/5.png, "
        f"{damaged}/a/7.png)); repair or remove it, or set data.on_bad_image=skip"
    )
    (line,) = survey(opened(damaged, on_bad_image="skip"))
    assert line == f"data: 3 of 9 images cannot be read, each replaced by the next; the first is {damaged}/a/3.png"


def test_training_begins_with_the_survey(damaged, tmp_path, capsys):
    words = [f"data.name=folder:{damaged}", "train.sample_every=None", "train.steps=1"]
    config = load_config("configs/digits.py:smoke", [f"--config.{word}" for word in words], DIFFUSION_SCHEMA)
    with pytest.raises(UserError, match=r"a/3\.png: cannot be read"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists() and capsys.readouterr().err == ""


def test_a_size_that_the_crop_does_not_take_is_found(tmp_path):
    save(tmp_path / "a/1.png", (178, 218))
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a/2.png", (218, 178), exif=exif)
    assert survey(opened(tmp_path, crop="celeba")) == []
    save(tmp_path / "a/3.png", (218, 178))
    with pytest.raises(UserError, match=r"a/3\.png: is 218×178 pixels, and data\.crop=celeba"):
        survey(opened(tmp_path, crop="celeba"))


def test_large_folders_and_other_data_sets_are_not_looked_through(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(SMALL_FOLDER + 1):
        (tmp_path / f"a/{number}.png").touch()
    assert survey(opened(tmp_path)) == survey(open_source(DataConfig("digits", 8))) == []
