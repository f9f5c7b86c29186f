"""The programs of every backbone, compiled for TPUs that are not there."""

import importlib.util
import re

import jax
import pytest

from diffusion_jax.config import load_config
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.models.backbones import BACKBONES
from diffusion_jax.parallel.collectives import BETWEEN_SLICES
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh
from diffusion_jax.parallel.topology import absent_devices, parse_topology
from diffusion_jax.planning.advice import advice
from diffusion_jax.planning.bounds import Bound
from diffusion_jax.planning.plan import Planner
from diffusion_jax.planning.programs import compile_program, train_program
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

FACTS = DatasetFacts(10, tuple("0123456789"), "nothing")
# These have attentions that the Pallas kernel takes; those of the others are too short, or have a bias.
PALLAS = {"dit", "iuvit", "ldm_transformer", "uvit"}
KERNEL = re.compile(r'custom_call_target="tpu_custom_call".*splash|splash.*custom_call_target="tpu_custom_call"')


# The fast tests take two; with convolutions a compilation takes several times as long.
EVERY = [
    name if name in ("dit", "ldm_transformer") else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(BACKBONES)
]


def compiled(config, topology):
    planner = Planner(config, FACTS, parse_topology(topology))
    return compile_program(train_program(planner.stage(config.train.batch_size)), thorough=False)


@pytest.mark.parametrize("name", EVERY)
def test_the_train_step_of_every_backbone_compiles(tiny, name):
    config = tiny(name, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    step = compiled(config, "v5e:2x2")
    assert step.fits and 0 < step.peak_bytes < 1e9
    assert {each.kind for each in step.collectives} >= {"all-reduce"}
    assert bool(KERNEL.search(step.text)) == (name in PALLAS)


def test_gradients_alone_pass_between_slices(tiny):
    config = tiny("dit")
    step = compiled(config, "2xv5e:2x2")
    between = [each.bytes_sent for each in step.collectives if each.kind == BETWEEN_SLICES]
    model = Planner(config, FACTS, parse_topology("2xv5e:2x2")).stage(16).system.abstract_model
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model))
    # A chip sends its share of the sum of its slice, in bfloat16 or float32, and a few scalars.
    assert 2 * parameters / 4 <= sum(between) <= 4 * parameters / 4 * 1.2


def test_slices_lie_one_after_the_other_along_data():
    mesh = make_mesh(MeshConfig(fsdp=2), absent_devices(parse_topology("2xv5e:2x2")))
    assert [device.slice_index for device in mesh.devices.flat] == [0] * 4 + [1] * 4


def test_a_plan_is_made_and_refuses_what_does_not_fit(tiny):
    plan = Planner(tiny("dit"), FACTS, parse_topology("v5e:2x2")).plan(largest=False)
    memory = plan.train.memory
    assert memory.fits and plan.sample.fits and plan.sample.images == 8
    # AdamW holds two numbers for each parameter and EMA one; all are copied to every chip.
    assert memory.parameters == memory.ema == 4 * plan.parameters
    assert abs(memory.optimizer - 8 * plan.parameters) < 64
    assert memory.work > 0
    kinds = plan.train.collectives
    assert set(kinds) == {"all-reduce"} and kinds["all-reduce"][1] >= 2 * 0.75 * 2 * plan.parameters


def test_copied_states_and_cut_rings_are_named():
    config = load_config("configs/dit.py", ["--config.model.dtype=bfloat16"], DIFFUSION_SCHEMA)
    planner = Planner(config, FACTS, parse_topology("v5e:4x4"))
    found = list(advice(planner.stage(256), planner.topology, Bound(1.0, 0.1, 0.1, 0.0)))
    assert len(found) == 1 and "every chip holds all 10.0 GiB" in found[0]
    config.mesh.fsdp = 8
    planner = Planner(config, FACTS, parse_topology("v5e:4x4"))
    found = list(advice(planner.stage(256), planner.topology, Bound(1.0, 0.1, 0.1, 0.0)))
    assert len(found) == 1 and "mesh.fsdp=8 is no whole axis of the 4×4 torus" in found[0]


@pytest.mark.slow
def test_dit_xl_2_compiles_for_sixteen_chips_and_what_does_not_fit_is_measured(monkeypatch):
    config = load_config("configs/dit.py", ["--config.model.dtype=bfloat16", "--config.mesh.fsdp=16"], DIFFUSION_SCHEMA)
    facts = DatasetFacts(1000, tuple(map(str, range(1000))), "nothing")
    planner = Planner(config, facts, parse_topology("v5e:4x4"))
    compiled, compile_step = {}, planner.compile_step
    monkeypatch.setattr(planner, "compile_step", lambda batch: compiled.setdefault(batch, compile_step(batch)))
    plan = planner.plan(1024, sampler=False)
    assert not plan.train.memory.fits and plan.train.memory.total > plan.train.memory.available
    largest = plan.largest_batch
    assert 512 <= largest < 1024 and largest % 16 == 0
    assert compiled[largest].fits and KERNEL.search(compiled[largest].text)
    assert not (compiled.get(largest + 16) or compile_step(largest + 16)).fits
