"""Every backbone and both first stages train alike on one device, on a 2×2×2 mesh and in two processes.

Run as a program, `test_every_mesh.py HOST:PORT NUMBER`, this file is one of the two processes.
"""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffusion_jax.autoencoding.system import AUTOENCODER_SCHEMA
from diffusion_jax.config import complete
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.parallel.create import shardings_of
from diffusion_jax.parallel.mesh import MeshConfig, local_rows, make_mesh, replicated, to_global
from diffusion_jax.parallel.partition import path_name
from diffusion_jax.smoke import TINY_MODELS, tiny_options
from diffusion_jax.training.autoencoder_stage import AutoencoderStage
from diffusion_jax.training.diffusion_stage import ClassifierStage, DiffusionStage

BATCH = 8
FACTS = DatasetFacts(10, tuple("0123456789"), "random pixels")
# Compiling is nearly all that these tests do.
QUICK = {"xla_backend_optimization_level": 0}

# Axes of two devices must divide heads and groups.
CHANGES = {"noisy_classifier": {"model_channels": 16, "resblock_updown": False}}
UNCONDITIONAL = ("ascend", "iuvit")
FIRST_STAGES = {"kl": {}, "vq": {"num_codes": 8}}
COMMON = {"ema": {"name": "constant", "max_decay": 0.9}, "train": {"steps": 1, "batch_size": BATCH, "seed": 3}}


def diffusion_config(name):
    classifies = name == "noisy_classifier"
    labelled = name not in UNCONDITIONAL
    sampling = {"sampler": {"name": "ddpm", "steps": 4}, "guidance": {"name": "cfg", "cfg_scale": 1.0}}
    return {
        "data": {"name": "digits", "image_size": 8, "channels": 1, "flip": True},
        "conditioner": {"name": "class", "label_drop": 0.3 * (not classifies)} if labelled else {"name": "none"},
        "autoencoder": {"name": "identity"},
        "model": {"name": name, **tiny_options(name), **CHANGES.get(name, {})},
        "path": {"name": "ddpm"},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "classification" if classifies else "simple"},
        "optimizer": {"name": "adamw", "lr": 1e-3, "clip_norm": 1.0},
        **({} if classifies else sampling),
        **COMMON,
    }


def first_stage_config(name):
    small = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 2, "z_channels": 2, "embed_dim": 2}
    return {
        "data": {"name": "digits", "image_size": 16, "channels": 1},
        "autoencoder": {"name": name, "in_channels": 1, "out_channels": 1, **small, **FIRST_STAGES[name]},
        "loss": {"name": name, "disc_start": 0},
        "discriminator": {"name": "patchgan", "num_layers": 1, "ndf": 8},
        "lpips": {},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "discriminator_optimizer": {"name": "adamw", "lr": 1e-3},
        "evaluate": {},
        **COMMON,
    }


def drawn(abstract):
    """A state of random weights, the optimizer's being zero: compiles nothing, and no gradient is zero by its layer."""
    draw = np.random.default_rng(1).standard_normal

    def make(path, leaf):
        weights = leaf.ndim and path_name(path).split("/")[0] in ("model", "ema", "opponent")
        value = np.abs(0.2 * draw(leaf.shape)) if weights else np.zeros(leaf.shape)
        signs = np.sign(draw(leaf.shape)) if leaf.ndim > 1 else 1  # running variances and scales are positive
        value = (value * signs).astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    return jax.tree_util.tree_map_with_path(make, abstract)


def one_step(name, mesh):
    """Scalars of a step on random pixels, and the state after it."""
    if name in FIRST_STAGES:
        stage = AutoencoderStage(complete(first_stage_config(name), AUTOENCODER_SCHEMA), FACTS)
        frozen = Frozen()
    else:
        kind = ClassifierStage if name == "noisy_classifier" else DiffusionStage
        stage = kind(complete(diffusion_config(name), kind.system_class.schema), FACTS)
        frozen = stage.load_frozen()
    stage.mesh = mesh
    abstract = stage.abstract_state()
    shardings = (shardings_of(abstract), replicated(mesh))
    step = jax.jit(stage.make_step(), out_shardings=shardings, compiler_options=QUICK)
    draw = np.random.default_rng(0).integers
    size = stage.data.image_size
    batch = {
        "image": draw(0, 256, (BATCH, size, size, 1), dtype=np.uint8),
        "label": draw(0, 10, BATCH, dtype=np.int32),
    }
    rows = local_rows(mesh, BATCH)
    local = {key: value[rows] for key, value in batch.items()}
    with jax.set_mesh(mesh):
        state, metrics = step(drawn(abstract), frozen, to_global(mesh, BATCH, local))
    return {key: float(value.addressable_data(0)) for key, value in metrics.items() if value.ndim == 0}, state


def assert_same_scalars(ours, want, name):
    assert ours.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(ours[key], value, rtol=2e-5, atol=1e-6, err_msg=f"{name} {key}")


def assert_same_state(ours, want, name):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(want), strict=True):
        key, a, b = path_name(path), np.asarray(a, np.float64), np.asarray(b, np.float64)
        # Adam's first step is the sign of the gradient, so that rounding decides it where the gradient is zero: its
        # moments are compared, which are the gradients, and the weights only to the length of a step.
        moment = "/mu/" in key or "/nu/" in key
        error, scale = np.linalg.norm(a - b), np.linalg.norm(b)
        assert (error <= 1e-4 * max(scale, 1e-2)) if moment else (np.abs(a - b).max() <= 2.1e-3), (
            name,
            key,
            error,
            scale,
        )


# DiT on more meshes is the matter of test_step.
FAST = ("uvit",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in (*TINY_MODELS, *FIRST_STAGES)],
)
def test_a_mesh_of_all_three_axes_equals_one_device_and_splits_the_state(name):
    ours, state = one_step(name, make_mesh(MeshConfig(2, 2, 2)))
    want = one_step(name, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert_same_scalars(ours, want[0], name)
    assert_same_state(state, want[1], name)
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.ndim:
            shard = leaf.addressable_shards[0].data.size
            total = sizes.setdefault(path_name(path).split("/")[0], [0, 0])
            total[0], total[1] = total[0] + shard, total[1] + leaf.size
    assert {"model", "ema", "optimizer"} <= sizes.keys()
    for part, (shard, whole) in sizes.items():
        assert shard <= 0.6 * whole, f"{name}: a device holds {shard} of the {whole} numbers of {part}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_equal_one():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, address, str(number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    found = []
    try:
        for process in started:
            out, error = process.communicate()
            assert process.returncode == 0, error
            found.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in started:
            process.kill()
            process.communicate()
    for name in (*TINY_MODELS, *FIRST_STAGES):
        want, _ = one_step(name, make_mesh(MeshConfig(), jax.devices()[:1]))
        for each in found:
            assert_same_scalars(each[name], want, name)


def main() -> None:
    """Prints the scalars of a step of everything, computed together with the other process."""
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    mesh = make_mesh(MeshConfig(2, 2, 2))
    print(json.dumps({name: one_step(name, mesh)[0] for name in (*TINY_MODELS, *FIRST_STAGES)}))


if __name__ == "__main__":
    main()
