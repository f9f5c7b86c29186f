"""Plans from shapes alone, and what is made of them."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from diffusion_jax.__main__ import main
from diffusion_jax.config import load_config
from diffusion_jax.data import DataConfig
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.parallel.collectives import BETWEEN_SLICES, Collective
from diffusion_jax.parallel.topology import CHIPS, parse_topology
from diffusion_jax.planning.advice import advice
from diffusion_jax.planning.analytic import gradient_collectives, kept_activations
from diffusion_jax.planning.bounds import Bound, bound
from diffusion_jax.planning.facts import planned_facts
from diffusion_jax.planning.plan import Planner, next_rows
from diffusion_jax.planning.programs import Compiled, _needed_bytes, train_batch
from diffusion_jax.planning.report import report
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA

FACTS = DatasetFacts(10, tuple("0123456789"), "nothing")
DIT_S = "configs/dit.py:S/2"


@pytest.fixture(scope="module")
def dit_s():
    """DiT-S/2 in bfloat16 with parameters split over the GPUs of a node."""
    overrides = ["--config.model.dtype=bfloat16", "--config.mesh.fsdp=8"]
    return Planner(load_config(DIT_S, overrides, DIFFUSION_SCHEMA), FACTS, parse_topology("h200x16"))


@pytest.fixture(scope="module")
def dit_s_plan(dit_s):
    return dit_s.plan()


def test_memory_is_the_shards_of_the_state(dit_s, dit_s_plan):
    memory, parameters = dit_s_plan.train.memory, dit_s_plan.parameters
    assert dit_s_plan.mesh == {"data": 2, "fsdp": 8, "tensor": 1}
    assert parameters / 8 * 4 <= memory.parameters <= parameters / 8 * 4 * 1.1
    assert memory.ema == memory.parameters
    assert abs(memory.optimizer - 2 * memory.parameters) < 64
    parts = (memory.parameters, memory.optimizer, memory.ema, memory.inputs, memory.work)
    assert memory.total == sum(parts) and memory.fits and all(parts)


def test_flops_are_those_of_the_published_model(dit_s_plan):
    # 6.06 GMAC a forward pass (DiT, table 1), three of them; the rest of the step is sd-vae's encoder.
    model = dit_s_plan.train.model_flops / 2 / 256 / 3
    assert abs(model / 6.06e9 - 1) < 0.01
    encoder = dit_s_plan.train.macs / 256 - 3 * model
    assert 130e9 < encoder < 140e9


def test_chip_hours_are_those_of_the_published_steps(dit_s_plan):
    assert dit_s_plan.steps == 7_000_000
    seconds = dit_s_plan.train.bound.seconds
    assert dit_s_plan.chip_hours(seconds) == pytest.approx(16 * 7e6 * seconds / 3600)
    assert dit_s_plan.assumed_seconds >= seconds


def test_the_largest_batch_fits_and_the_next_does_not(dit_s, dit_s_plan):
    largest = dit_s_plan.largest_batch
    assert largest % 16 == 0
    assert dit_s.memory(dit_s.stage(largest), None).fits
    assert not dit_s.memory(dit_s.stage(largest + 16), None).fits


def test_estimated_time_moves_state_twice_and_activations_twice(dit_s, dit_s_plan):
    memory, bound = dit_s_plan.train.memory, dit_s_plan.train.bound
    state = memory.parameters + memory.optimizer + memory.ema
    assert bound.hbm == pytest.approx((2 * state + memory.inputs + 2 * memory.work) / 4.8e12)
    # Gradients are as large as the parameters; what is kept of the images of one device is the rest of the work.
    kept = kept_activations(dit_s.stage(256))
    assert memory.work - memory.parameters == kept
    assert kept_activations(dit_s.stage(256, microbatches=2)) < 0.51 * kept


def test_the_assumed_share_of_the_peak_sets_the_assumed_time(tiny):
    plan = Planner(tiny("dit"), FACTS, parse_topology("h200x2")).plan(mfu=0.01, largest=False)
    assert plan.mfu == 0.01 and plan.assumed_seconds > plan.train.bound.seconds
    assert plan.assumed_seconds == pytest.approx(plan.train.model_flops / (0.01 * 2 * 989e12))


def test_cached_latents_are_fed_in_place_of_images():
    overrides = ["--config.data.name=cache:nowhere", "--config.data.flip=True"]
    config = load_config(DIT_S, overrides, DIFFUSION_SCHEMA)
    stage = Planner(config, FACTS, parse_topology("h200x8")).stage(16)
    shapes = {name: leaf.shape for name, leaf in train_batch(stage).items()}
    moments = ("mean", "std", "mirrored_mean", "mirrored_std")
    assert shapes == {"label": (16,), **dict.fromkeys(moments, (16, 32, 32, 4))}
    config.data.flip = False
    stage = Planner(config, FACTS, parse_topology("h200x8")).stage(16)
    assert set(train_batch(stage)) == {"label", "mean", "std"}


def test_a_batch_that_does_not_divide_is_refused(dit_s):
    with pytest.raises(
        UserError, match=r"batch size 200 does not divide over the 16 parts .* multiple of 16 with --batch"
    ):
        dit_s.plan(200)


def test_rematerialisation_keeps_less(tiny):
    kept = {
        policy: kept_activations(
            Planner(tiny("dit", f"--config.model.remat={policy}"), FACTS, parse_topology("h200x1")).stage(4)
        )
        for policy in ("none", "full")
    }
    assert 0 < kept["full"] < 0.5 * kept["none"]


def test_gradients_are_summed_within_nodes_and_between_them(dit_s):
    stage = dit_s.stage(256)
    found = {(each.kind, each.group_size): each for each in gradient_collectives(stage, dit_s.topology)}
    gathered, scattered = found["all-gather", 8], found["reduce-scatter", 8]
    assert gathered.count == 2 and scattered.operand_bytes == 8 * gathered.operand_bytes
    assert found["all-reduce", 2].operand_bytes == gathered.operand_bytes
    # Of all gradients, 4 bytes each, a device's share is an eighth, and half of it twice goes to the other node.
    parameters = sum(leaf.size for leaf in jax.tree.leaves(stage.system.abstract_model))
    assert found[BETWEEN_SLICES, 1].bytes_sent == pytest.approx(parameters * 4 / 8, rel=1e-6)


def test_the_longest_part_bounds_the_step():
    topology = parse_topology("v5e:4x4")
    found = bound(
        topology, 10**15, 8.19e9, [Collective("all-gather", 10**9, 3, 1), Collective(BETWEEN_SLICES, 10**7, 1, 1)]
    )
    assert found == Bound(2e15 / (16 * 197e12), 0.01, 0.01, 0.0032)
    assert (found.seconds, found.by) == (found.compute, "compute")
    assert Bound(None, 0.1, 0.2, 0.3).by == "slow network"


@pytest.mark.parametrize(
    ("known", "rows"),
    [
        ({4: (50, True), 8: (90, True)}, 9),
        ({4: (50, True), 8: (130, False)}, 6),
        ({4: (50, True), 8: (90, True), 12: (200, False)}, 9),
        ({16: (130, False), 32: (250, False)}, 12),
        ({4: (50, True), 8: (50, True)}, 16),
    ],
)
def test_the_next_batch_to_try_is_where_the_line_meets_the_limit(known, rows):
    compiled = {size: Compiled(peak, fits, None, None, 0.0) for size, (peak, fits) in known.items()}
    assert next_rows(compiled, 100.0) == rows


@pytest.mark.parametrize(("fixed", "each"), [(10, 7.5), (10, 60), (95, 1), (99.5, 1), (0, 0.3)])
def test_the_largest_batch_is_found_from_any_start(dit_s, monkeypatch, fixed, each):
    """Memory that is a line, and a little above it where it is nearly full, as when the compiler has to recompute."""

    def compiled(batch):
        peak = fixed + each * batch / 16
        return Compiled(peak - 2 * (90 < peak < 101), peak < 101, None, None, 0.0)

    monkeypatch.setattr(dit_s, "compile_step", compiled)
    topology = dataclasses.replace(dit_s.topology, kind="v5e")
    monkeypatch.setattr(dit_s, "topology", topology)
    monkeypatch.setitem(CHIPS, "v5e", dataclasses.replace(CHIPS["v5e"], hbm=101.0))
    fits = [rows for rows in range(1, 400) if compiled(16 * rows).fits]
    with ThreadPoolExecutor(2) as workers:
        known = {rows: compiled(16 * rows) for rows in (2, 4)}
        assert dit_s.largest_batch(16, known, workers) == 16 * max(fits, default=0)


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.5G of 15.75G hbm.", 17.5 * 2**30),
        ("RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (512.0M) exceeds", 512 * 2**20 + 7),
        ("RESOURCE_EXHAUSTED: something else", None),
        ("INTERNAL: Used 17.5G of 15.75G hbm", None),
    ],
)
def test_what_a_refused_program_needs_is_read_from_the_refusal(message, needed):
    assert _needed_bytes(message, 7) == needed


def sentences(config, topology, by=None):
    planner = Planner(config, FACTS, parse_topology(topology))
    stage = planner.stage(config.train.batch_size)
    return list(advice(stage, planner.topology, by or Bound(1.0, 0.1, 0.1, 0.0)))


def test_a_good_mesh_gives_no_warning(tiny):
    assert sentences(tiny("dit", "--config.mesh.fsdp=8"), "h200x8") == []


@pytest.mark.parametrize(
    ("overrides", "topology", "sentence"),
    [
        (["--config.mesh.tensor=2"], "h200x32", "16 images on 32 chips is less than one each"),
        (["--config.mesh.fsdp=16"], "h200x16", "reaches beyond a node of 8"),
        (["--config.model.dtype=float32"], "h200x8", "model.dtype=float32"),
    ],
)
def test_waste_is_named(tiny, overrides, topology, sentence):
    assert any(sentence in each for each in sentences(tiny("dit", *overrides), topology))


def test_parameters_that_are_not_split_are_named(tiny):
    found = sentences(tiny("unet", "--config.mesh.tensor=2"), "h200x8")
    assert any("of the parameters are not split over tensor" in each for each in found)


def test_a_step_that_waits_is_named(tiny):
    found = sentences(tiny("dit"), "h200x8", Bound(0.1, 0.1, 0.25, 0.0))
    assert any("bound by interconnect, 2.5× what its FLOPs take: 2 image(s)" in each for each in found)


def test_classes_come_from_where_they_are_known(tmp_path):
    folder = DataConfig(name=f"folder:{tmp_path}/none", image_size=8)
    assert planned_facts(DataConfig(name="tfds:cifar10", image_size=32), True, None).num_classes == 10
    assert planned_facts(DataConfig(name="digits", image_size=8, channels=1), True, None).num_classes == 10
    assert planned_facts(folder, True, 7).num_classes == 7
    assert planned_facts(folder, False, None).num_classes == 1
    with pytest.raises(UserError, match=r"the number of classes is not known .* name it with --classes"):
        planned_facts(folder, True, None)
    with pytest.raises(UserError, match="name it with --classes"):
        planned_facts(DataConfig(name="tfds:no_such_set", image_size=8), True, None)


def test_the_report_says_it_all(dit_s_plan):
    text = report(dit_s_plan, "DiT-S/2")
    for part in (
        "DiT-S/2 on h200x16: 2 nodes of h200 8, 16 chips",
        "of 131.32: fits",
        "chip-hours at the bound",
        "all-gather",
    ):
        assert part in text
    assert json.loads(json.dumps(dit_s_plan.to_json()))["train"]["bound"]["by"] == dit_s_plan.train.bound.by


def test_the_command_prints_and_writes(capsys, tmp_path):
    out = tmp_path / "plan.json"
    main(
        ["plan", "--config=configs/digits.py:smoke", "--topology=h200x8", "--batch=16", "--nolargest", f"--json={out}"]
    )
    assert "planned in" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["topology"]["num_chips"] == 8 and written["train"]["memory"]["fits"] is True
    # Twice the config's batch, and half of its steps.
    assert (written["batch_size"], written["steps"], written["largest_batch"]) == (16, 1, None)


def test_a_config_of_a_first_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--config", "configs/ldm_autoencoder.py:kl-f8", "--topology", "h200x8"])
    assert "trains a first stage" in capsys.readouterr().err
