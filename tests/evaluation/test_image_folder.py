"""Folders of sample images: order, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.image_folder import ImageFiles


def save(folder, name, image, mode="RGB"):
    Image.fromarray(image).convert(mode).save(folder / name)


def test_files_come_in_the_order_of_their_numbers(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 4, 3), np.uint8)
    for i, image in enumerate(images):
        save(tmp_path, f"{i}.png", image)
    (tmp_path / "notes.txt").write_text("no image")
    files = ImageFiles(tmp_path)
    assert files.count == 12 and files.image_shape == (6, 4, 3)
    assert np.array_equal(np.concatenate([batch["image"] for batch in files.batches()]), images)
    assert files.describe()["lossy_files"] == 0
    save(tmp_path, "12.jpg", images[0])
    assert ImageFiles(tmp_path).describe()["lossy_files"] == 1
    save(tmp_path, "²1.png", images[0])  # a digit to Unicode, and no number
    assert [path.name for path in ImageFiles(tmp_path).paths][-2:] == ["12.jpg", "²1.png"]


def test_other_images_are_refused(tmp_path):
    grey = np.zeros((6, 6, 3), np.uint8)
    with pytest.raises(UserError, match=r"no \.jpg.* file in it"):
        ImageFiles(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        ImageFiles(tmp_path / "absent")
    for mode in ("L", "RGBA"):
        save(tmp_path, "0.png", grey, mode)
        with pytest.raises(UserError, match=rf"0\.png: is of mode {mode}; samples are RGB"):
            ImageFiles(tmp_path)
    save(tmp_path, "0.png", np.eye(6, dtype=np.uint8)[..., None].repeat(3, -1))
    with pytest.raises(UserError, match="the first 1 images hold 0 and 1 alone"):
        ImageFiles(tmp_path)
    save(tmp_path, "0.png", grey)
    save(tmp_path, "1.png", grey[:5])
    with pytest.raises(UserError, match=r"1\.png: is 5×6, but 0\.png is 6×6"):
        list(ImageFiles(tmp_path).batches())
    (tmp_path / "1.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"1\.png: cannot be read"):
        list(ImageFiles(tmp_path).batches())
