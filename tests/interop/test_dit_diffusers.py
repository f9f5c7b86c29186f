"""DiT under diffusers names: parity, the way there and back, and what diffusers does not know."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.interop.dit_diffusers import (
    diffusers_dit_config,
    diffusers_dit_entries,
    diffusers_dit_options,
    load_diffusers_dit,
)
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.models.backbones import abstract_backbone
from diffusion_jax.models.conditioning.parts import Conditioning

# The config.json that diffusers writes for the model of the golden file.
EXTRA = {"_class_name": "DiTTransformer2DModel", "norm_eps": 1e-5, "norm_num_groups": 32, "upcast_attention": False}


@pytest.fixture(scope="module")
def data(golden):
    return golden("diffusers_dit")


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """The pipeline folder of the golden model."""
    place = tmp_path_factory.mktemp("pipeline")
    inner = place / "transformer"
    inner.mkdir()
    (inner / "config.json").write_text(json.dumps({**EXTRA, **data["config"]["kwargs"]}))
    weights = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    save_file(weights, inner / "diffusion_pytorch_model.safetensors")
    return place


@jax.jit
def run(model, x, t, cond):
    """The output, and the official activations of the first image."""
    tokens, c = model.embed(x, t, cond)
    states = [tokens]
    for i in range(model.depth):
        states.append(jax.tree.map(lambda leaf, i=i: leaf[i], model.blocks)(states[-1], c))
    return model(x, t, cond), [state[:1] for state in states]


@pytest.mark.parametrize(("function", "name"), [("diffusers", "sample"), ("official", "official_forward")])
def test_computes_the_function_of_either_code(data, folder, function, name):
    model = load_diffusers_dit(folder, function=function)
    x = jnp.asarray(np.moveaxis(data["in/hidden_states"], 1, -1))
    t, y = jnp.asarray(data["in/timestep"], jnp.float32), jnp.asarray(data["in/class_labels"], jnp.int32)
    out, states = run(model, x, t, Conditioning(label=y))

    def close(ours, theirs):
        return np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * max(1.0, theirs.std())

    assert close(out, np.moveaxis(data[f"out/{name}"], 1, -1))
    assert close(states[0], data["out/act/pos_embed"])
    if function == "diffusers":
        assert close(states[1], data["out/act/transformer_blocks.0"])
        assert close(states[2], data["out/act/transformer_blocks.1"])


def test_export_gives_the_file_back_bit_for_bit(data, folder):
    model = load_diffusers_dit(folder, function="diffusers")
    ours = dump_state_dict(model, diffusers_dit_entries(model))
    theirs = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    config = diffusers_dit_config(model)
    expected = {**EXTRA, **data["config"]["kwargs"]}
    assert {key: value for key, value in config.items() if key != "dropout"}.items() <= expected.items()
    assert config["dropout"] == 0
    official = load_diffusers_dit(folder)
    assert diffusers_dit_config(official)["norm_eps"] == 1e-6


def test_copies_that_differ_are_refused(data, folder, tmp_path):
    weights = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    weights[name] = weights[name] + 1e-6
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((folder / "transformer" / "config.json").read_text())
    with pytest.raises(UserError, match=r"transformer_blocks\.1\.norm1.* must be equal, but differ"):
        load_diffusers_dit(tmp_path)


def test_other_models_and_missing_files_are_named(data, folder, tmp_path):
    config = {**EXTRA, **data["config"]["kwargs"]}
    with pytest.raises(UserError, match="describes a PixArtTransformer2DModel"):
        diffusers_dit_options({**config, "_class_name": "PixArtTransformer2DModel"}, "official")
    with pytest.raises(UserError, match=r"norm_type='ada_norm_single': a DiT has 'ada_norm_zero'"):
        diffusers_dit_options({**config, "norm_type": "ada_norm_single"}, "official")
    with pytest.raises(UserError, match=r"no '.*config\.json': DiT is published for diffusers"):
        load_diffusers_dit(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json' is no JSON"):
        load_diffusers_dit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no weights at .*safetensors"):
        load_diffusers_dit(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"block": "adaln"}, "block='adaln_zero'"),
        ({"block": "in_context"}, "block='adaln_zero'"),
        ({"modulation_shift": False}, "modulation_shift=True"),
        ({"norm": "rms"}, "norm='layer'"),
        ({"mlp": "swiglu"}, "mlp='gelu'"),
        ({"mlp_ratio": 2.0}, "mlp_ratio=4"),
        ({"qk_norm": "rms"}, "qk_norm='none'"),
        ({"rope": True}, "rope=False"),
        ({"base_grid": (2, 2)}, "base_grid=None"),
        ({"time_scale": 1000.0}, "time_scale=1"),
        ({"input_shape": (8, 4, 4)}, "a square input"),
        ({"repa_depth": 1}, "repa_depth=0"),
    ],
)
def test_what_diffusers_does_not_know_is_named(data, options, named):
    classic = diffusers_dit_options({**EXTRA, **data["config"]["kwargs"]}, "official")
    model = abstract_backbone("dit", **{**classic, **options})
    with pytest.raises(UserError, match=f"with {named}: this model cannot go by its names"):
        diffusers_dit_entries(model)
