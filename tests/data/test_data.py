import pytest

from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.errors import UserError


def test_digits_with_the_config_defaults():
    source = open_source(DataConfig(name="digits", image_size=8))
    assert source.identity == "digits split=train images=1438 size=8 channels=3"
    assert source[0]["image"].shape == source.image_shape == (8, 8, 3)


@pytest.mark.parametrize("name", ["digit", "folder", "folder:", "tfds:", "cifar10", "", "digits:8"])
def test_unknown_names(name):
    with pytest.raises(UserError, match=rf"data.name='{name}': no such data set; (did you mean|known:)"):
        open_source(DataConfig(name=name, image_size=8))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0),
        ("channels", 2),
        ("num_threads", 0),
        ("num_workers", -1),
        ("prefetch", 0),
        ("on_bad_image", "ignore"),
        ("crop", "centre"),
    ],
)
def test_values_out_of_range(field, value):
    with pytest.raises(UserError, match=rf"data\.{field}={value!r}: must be"):
        DataConfig(**{"name": "digits", "image_size": 8, field: value})
