"""Points and names of sweeps."""

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.sweeping.grid import LONGEST_NAME, names, product, zipped


def test_product_of_mappings_and_points():
    sizes = zipped({"model.width": [64, 128], "model.heads": [2, 4]})
    points = product({"optimizer.lr": [1e-3, 1e-4]}, sizes)
    assert points == [
        {"optimizer.lr": 1e-3, "model.width": 64, "model.heads": 2},
        {"optimizer.lr": 1e-3, "model.width": 128, "model.heads": 4},
        {"optimizer.lr": 1e-4, "model.width": 64, "model.heads": 2},
        {"optimizer.lr": 1e-4, "model.width": 128, "model.heads": 4},
    ]
    assert product({"a.b": [1, 2], "a.c": [3]}) == [{"a.b": 1, "a.c": 3}, {"a.b": 2, "a.c": 3}]
    assert product() == [{}]


def test_zipped_needs_equally_many_values():
    with pytest.raises(UserError, match=r"equally many for every key: there are of model.width 2, model.heads 1"):
        zipped({"model.width": [64, 128], "model.heads": [2]})


def test_a_key_has_its_values_in_one_place():
    with pytest.raises(UserError, match=r"train.seed occurs in two parts"):
        product({"train.seed": [0]}, [{"train.seed": 1}])


def test_names_are_short_where_keys_are_told_apart():
    points = product({"optimizer.lr": [1e-3], "loss.name": ["simple", "min_snr"]})
    assert names(points) == ["lr=0.001,loss=simple", "lr=0.001,loss=min_snr"]
    assert names([{"train.steps": 5, "sampler.steps": 7}]) == ["train.steps=5,sampler.steps=7"]
    assert names([{}]) == ["base"]


def test_names_stay_when_values_are_added():
    few, more = [product({"optimizer.lr": values}) for values in ([0.1, 0.2], [0.1, 0.2, 0.3])]
    assert names(more)[:2] == names(few)


def test_names_can_be_folders():
    point = {"guidance.interval": (0.3, 2.0), "data.name": "folder:/data/a b", "ema.max_decay": None}
    assert names([point]) == ["interval=0.3-2.0,data=folder--data-ab,max_decay=None"]


def test_long_names_are_cut_and_stay_different():
    long = names([{"data.name": "x" * 200 + end} for end in "ab"])
    assert len(set(long)) == 2 and all(len(name) == LONGEST_NAME for name in long)


def test_equal_points_are_refused():
    with pytest.raises(UserError, match=r"two points of the sweep have the name 'seed=1'"):
        names([{"train.seed": 1}, {"train.seed": 1}])
