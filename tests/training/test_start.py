"""How a run begins: with weights of another, and never in silence on other data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffusion_jax as dj
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.optim.freezing import freeze
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.runs.metadata import RunMetadata
from diffusion_jax.training.initial_weights import _Mapped, parse_run
from diffusion_jax.training.start import check_same_data

OVERRIDES = {"train.steps": 2, "train.save_every": 2, "train.sample_every": None, "data.channels": 3}


def folders(root, *names, seed=0):
    """Class folders of one noise image each."""
    draw = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(root / name / "0.png")
    return f"folder:{root}"


def facts(*names, identity="data", encoder=None):
    return DatasetFacts(len(names), names, identity, encoder)


def weights(run, params):
    model = run.restored([f"--config.sample.params={params}"]).model
    return {"/".join(map(str, path)): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


@pytest.mark.usefixtures("shared_compilations")
def test_a_run_begins_with_the_weights_of_another(tmp_path, capsys):
    data = folders(tmp_path / "three", "cat", "dog", "frog")
    first = dj.train("configs/digits.py:smoke", tmp_path / "a", {**OVERRIDES, "data.name": data})
    other = folders(tmp_path / "two", "ape", "dog", seed=1)
    words = {**OVERRIDES, "data.name": other, "optimizer.lr": 0.0, "train.seed": 1}
    second = dj.train("configs/digits.py:smoke", tmp_path / "b", words, init_from=f"{tmp_path / 'a'}:2")
    assert "1 classes by name, 1 new" in capsys.readouterr().err
    old, new = weights(first, "ema"), weights(second, "raw")
    (table,) = [name for name in old if "table" in name]
    np.testing.assert_array_equal(new[table][1], old[table][1])  # dog
    np.testing.assert_array_equal(new[table][2], old[table][3])  # no class
    assert np.abs(new[table][0] - old[table][0]).max() > 0  # ape is new
    assert all(np.array_equal(new[name], old[name]) for name in old if name != table)
    taken = RunFolder(tmp_path / "b").metadata().more["init_from"]
    assert taken["step"] == 2 and taken["params"] == "ema" and taken["classes"] == {"kept": 1, "new": 1}

    # The same folder, with other classes in it.
    (tmp_path / "two").rename(tmp_path / "gone")
    (tmp_path / "three").rename(tmp_path / "two")
    with pytest.raises(UserError, match=r"classes ape, dog; the data cat, dog, frog: restore the data to resume"):
        dj.train(
            "configs/digits.py:smoke",
            tmp_path / "b",
            {**words, "data.name": other, "train.steps": 3},
        )
    with pytest.raises(UserError, match=r"'.*' is \(.*\) there and \(.*\) here: set the section model to that run's"):
        dj.train("configs/digits.py:smoke", tmp_path / "c", {**words, "model.width": 64}, init_from=str(tmp_path / "a"))


def test_the_run_and_the_step_are_parted():
    assert parse_run("runs/a:20") == ("runs/a", "20") and parse_run("runs/a:best") == ("runs/a", "best")
    assert parse_run("runs/a") == ("runs/a", "latest") and parse_run("gs://bucket/a") == ("gs://bucket/a", "latest")


def test_learned_positions_are_interpolated():
    old = jnp.concatenate([jnp.full((2, 3), 9.0), jnp.arange(16.0)[:, None].repeat(3, 1)])
    mapped = _Mapped("run", RunMetadata({}, facts("a"), {}), facts("a"))
    new = mapped.array("embed.positions", {"embed.positions": old}, jnp.zeros((2 + 64, 3)))
    np.testing.assert_array_equal(new[:2], old[:2])
    grid = np.asarray(new[2:, 0]).reshape(8, 8)
    assert np.all(np.diff(grid, axis=0) > 0) and np.all(np.diff(grid, axis=1) > 0)
    np.testing.assert_allclose(grid.mean(), 7.5, rtol=1e-5)
    assert mapped.positions == ["embed.positions"]


def test_other_classes_are_refused_and_another_listing_is_warned_of(capsys):
    folder = RunFolder("runs/x")
    with pytest.raises(UserError, match=r"the classes cat, dog, frog; the data ape, dog, frog, zebra"):
        check_same_data(facts("ape", "dog", "frog", "zebra"), facts("cat", "dog", "frog"), folder, labelled=True)
    check_same_data(facts("ape"), facts("cat"), folder, labelled=False)
    with pytest.raises(UserError, match="was trained on latents of autoencoder abc, and the cache holds those of def"):
        check_same_data(facts("a", encoder="def"), facts("a", encoder="abc"), folder, labelled=True)
    assert capsys.readouterr().err == ""
    check_same_data(facts("a", identity="new"), facts("a", identity="old"), folder, labelled=True)
    assert "warning: the data are not those that runs/x was trained on" in capsys.readouterr().err


def test_frozen_parameters_do_not_move_nor_count():
    import optax

    params = {"head": {"kernel": jnp.ones(2)}, "body": {"kernel": jnp.ones(2)}}
    gradient = {"head": {"kernel": jnp.full(2, 3.0)}, "body": {"kernel": jnp.full(2, 400.0)}}
    frozen = freeze(optax.chain(optax.clip_by_global_norm(1e3), optax.sgd(1.0)), ["^body"])
    updates, _ = frozen.update(gradient, frozen.init(params), params)
    np.testing.assert_array_equal(updates["body"]["kernel"], 0)
    np.testing.assert_array_equal(updates["head"]["kernel"], -3.0)
    with pytest.raises(UserError, match=r"train.freeze='tail': is found in no parameter's name"):
        freeze(optax.sgd(1.0), ["tail"]).init(params)
