"""Name tables: both directions agree bit for bit, and every way a state dict can be wrong is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from diffusion_jax.errors import UserError
from diffusion_jax.interop.mapping import (
    ConvAsLinear,
    Entry,
    Permute,
    Squeeze,
    conv,
    dump_state_dict,
    linear,
    load_state_dict,
    norm,
    parameter_paths,
)

LAYERS = 3


class Block(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.qkv = nnx.Linear(4, 12, rngs=rngs)
        self.heads = nnx.LinearGeneral(4, (2, 3), rngs=rngs)


class Toy(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.patch = nnx.Linear(2 * 2 * 3, 4, rngs=rngs)
        self.blocks = jax.vmap(lambda key: Block(rngs=nnx.Rngs(key)))(jax.random.split(rngs.params(), LAYERS))
        self.convs = nnx.List([nnx.Conv(4, 5, (3, 2), rngs=rngs)])
        self.positions = nnx.Param(jnp.zeros((7, 4)))
        self.time = nnx.Linear(4, 2, use_bias=False, rngs=rngs)


ENTRIES = [
    *conv("embed.proj", "patch", transform=ConvAsLinear(2)),
    *norm("layers.{i}.norm", "blocks/norm"),
    *linear(("layers.{i}.q", "layers.{i}.k", "layers.{i}.v"), "blocks/qkv"),
    *linear("layers.{i}.heads", "blocks/heads", out_features=(2, 3)),
    *conv("head", "convs/0"),
    Entry("pos", "positions", Squeeze()),
    Entry("time.0.weight", "time/kernel", Permute((1, 0)), copies=("time.1.weight",)),
]


def make() -> Toy:
    return Toy(rngs=nnx.Rngs(0))


@pytest.fixture
def state_dict() -> dict[str, np.ndarray]:
    shapes = {"embed.proj.weight": (4, 3, 2, 2), "embed.proj.bias": (4,), "pos": (1, 7, 4)}
    for i in range(LAYERS):
        shapes |= {f"layers.{i}.norm.weight": (4,), f"layers.{i}.norm.bias": (4,)}
        shapes |= {f"layers.{i}.heads.weight": (6, 4), f"layers.{i}.heads.bias": (6,)}
        for part in "qkv":
            shapes |= {f"layers.{i}.{part}.weight": (4, 4), f"layers.{i}.{part}.bias": (4,)}
    shapes |= {"head.weight": (5, 4, 3, 2), "head.bias": (5,), "time.0.weight": (2, 4)}
    rng = np.random.default_rng(0)
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return state | {"time.1.weight": state["time.0.weight"].copy()}


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_their_numbers_come_back_bit_for_bit(state_dict, tmp_path):
    module = load_state_dict(jax.eval_shape(make), state_dict, ENTRIES)
    assert jax.tree.structure(module) == jax.tree.structure(make())
    dumped = dump_state_dict(module, ENTRIES)
    assert_equal(dumped, state_dict)
    save_file(dumped, tmp_path / "weights.safetensors")
    assert_equal(load_file(tmp_path / "weights.safetensors"), state_dict)


def test_our_numbers_come_back_bit_for_bit():
    module = make()
    again = load_state_dict(jax.eval_shape(make), dump_state_dict(module, ENTRIES), ENTRIES)
    assert_equal(parameter_paths(again), parameter_paths(module))


def test_layers_compute_what_theirs_would(state_dict):
    module = load_state_dict(make(), state_dict, ENTRIES)
    x = np.random.default_rng(1).standard_normal((4,)).astype(np.float32)
    block = jax.tree.map(lambda leaf: leaf[2], module.blocks)
    k = state_dict["layers.2.k.weight"] @ x + state_dict["layers.2.k.bias"]
    np.testing.assert_allclose(block.qkv(x)[4:8], k, rtol=1e-5, atol=1e-6)
    heads = state_dict["layers.2.heads.weight"] @ x + state_dict["layers.2.heads.bias"]
    np.testing.assert_allclose(block.heads(x), heads.reshape(2, 3), rtol=1e-5, atol=1e-6)

    image = np.random.default_rng(2).standard_normal((3, 2, 2)).astype(np.float32)  # CHW, one patch
    theirs = np.einsum("oihw,ihw->o", state_dict["embed.proj.weight"], image) + state_dict["embed.proj.bias"]
    ours = module.patch(image.transpose(1, 2, 0).reshape(-1))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_values_take_our_dtype_and_sharding(state_dict):
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    split = NamedSharding(mesh, PartitionSpec(None, None, "model"))
    abstract = jax.eval_shape(make)
    kernel = abstract.blocks.qkv.kernel
    kernel.set_value(jax.ShapeDtypeStruct(kernel.shape, jnp.float32, sharding=split))
    half = {name: array.astype(np.float16) for name, array in state_dict.items()}
    module = load_state_dict(abstract, half, ENTRIES)
    assert module.blocks.qkv.kernel.get_value().sharding == split
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(module))
    assert not module.positions.get_value().committed
    assert not load_state_dict(make(), half, ENTRIES).positions.get_value().committed


def test_ignored_names_may_be_there(state_dict):
    extra = state_dict | {"loss.logvar": np.zeros(()), "loss.net.weight": np.zeros(3)}
    load_state_dict(make(), extra, ENTRIES, ignore=("loss.*",))
    with pytest.raises(UserError, match=r"^w\.pt has unexpected 'loss\.logvar' and 1 more: .*configuration$"):
        load_state_dict(make(), extra, ENTRIES, source="w.pt")


def test_missing_and_unexpected_names_are_one_line(state_dict):
    state_dict["layers.3.q.weight"] = state_dict.pop("layers.1.q.weight")
    message = r"^state dict lacks 'layers\.1\.q\.weight' and has unexpected 'layers\.3\.q\.weight': [^\n]*$"
    with pytest.raises(UserError, match=message):
        load_state_dict(make(), state_dict, ENTRIES)


@pytest.mark.parametrize(
    ("name", "shape", "needed"),
    [
        ("layers.1.q.weight", (4, 5), r"\(4, 4\)"),
        ("embed.proj.weight", (4, 3, 4), r"\(4, 3, 2, 2\)"),
        ("pos", (7, 4), r"\(1, 7, 4\)"),
        ("time.1.weight", (4, 2), r"\(2, 4\)"),
    ],
)
def test_wrong_shape_is_named(state_dict, name, shape, needed):
    state_dict[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=rf"'{name}' has shape .* needs {needed}"):
        load_state_dict(make(), state_dict, ENTRIES)


def test_copies_must_agree(state_dict):
    state_dict["time.1.weight"][0, 0] += 1
    with pytest.raises(UserError, match=r"'time\.1\.weight' and 'time\.0\.weight' must be equal"):
        load_state_dict(make(), state_dict, ENTRIES)


@pytest.mark.parametrize(
    "entries",
    [
        ENTRIES[:-1],
        [*ENTRIES, ENTRIES[0]],
        [*ENTRIES, Entry("x", "nowhere")],
        [*ENTRIES[:-1], Entry("head.bias", "time/kernel")],
    ],
    ids=["incomplete", "parameter twice", "no such parameter", "tensor twice"],
)
def test_a_table_that_does_not_fit_is_a_programming_error(state_dict, entries):
    with pytest.raises(ValueError, match="disagree on"):
        load_state_dict(make(), state_dict, entries)
