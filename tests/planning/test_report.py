"""The page of a plan whose figures are known, and what follows from them."""

import dataclasses

import pytest

from diffusion_jax.parallel.topology import GIB, parse_topology
from diffusion_jax.planning.bounds import Bound
from diffusion_jax.planning.plan import Memory, Plan, SamplePlan, TrainPlan
from diffusion_jax.planning.report import report

PAGE = """\
a run on v5e:2x2: v5e 2×2, 4 chips
mesh data=4 fsdp=1 tensor=1, 1,000,000 parameters, batch 64

memory of a chip, GiB
  parameters                      1.00
  optimizer                       2.00
  EMA                             1.50
  first stage and batch           0.25
  activations, gradients          3.00
  in all                          7.75  of 15.75: fits
  largest batch             128 images  compiled

one step
  FLOPs                           10.0  TFLOP of all chips, first stage and recomputation included
  of forward and backward          7.9  TFLOP of the backbone, by which MFU counts
  all-reduce                      20.0  MB leave each chip, in 3 exchanges

time of a step, ms at least
  FLOPs at the peak              12.50
  memory                         20.00
  interconnect                    5.00
  bound                          20.00  set by memory; MFU 50%, no faster than 3,200 images/s
  at 40% MFU                     25.00  2,560 images/s
  90,000,000 steps: 2,000 chip-hours at the bound, 2,500 at 40% MFU (625 hours)

sampling 8 images at once
  memory of a chip                2.00  GiB of 15.75: fits
  FLOPs                            5.0  TFLOP an image
  no collectives
  bound                           0.50  s, set by compute; no faster than 16.0 images/s
warning: a word

planned in 7 s, compiled with libtpu"""


@pytest.fixture
def plan():
    memory = Memory(GIB, 2 * GIB, 1.5 * GIB, GIB / 4, 3 * GIB, 15.75 * GIB)
    train = TrainPlan(memory, Bound(0.0125, 0.02, 0.005, 0.0), 5 * 10**12, 7.88e12, {"all-reduce": (3, 2e7)}, 1.0)
    sample = SamplePlan(8, 2 * GIB, True, 20 * 10**12, Bound(0.5, 0.1, 0.0, 0.0), {}, 1.0)
    topology = parse_topology("v5e:2x2")
    mesh = {"data": 4, "fsdp": 1, "tensor": 1}
    return Plan(topology, mesh, 64, 10**6, train, sample, 128, 9e7, 0.4, 0.025, ("a word",), 7.0)


def with_train(plan, **fields):
    return dataclasses.replace(plan, train=dataclasses.replace(plan.train, **fields))


def test_every_figure_has_its_unit_and_place(plan):
    assert report(plan, "a run") == PAGE


def test_shares_of_the_peak_and_hours_are_those_of_all_chips(plan):
    assert plan.mfu_at_bound == pytest.approx(7.88e12 / (0.02 * 4 * 197e12))
    assert plan.chip_hours(0.5) == pytest.approx(50_000)
    written = plan.to_json()
    assert written["train"]["bound"]["by"] == "memory" and written["train"]["bound"]["seconds"] == 0.02
    assert written["sample"]["bound"]["by"] == "compute" and written["sample"]["bound"]["seconds"] == 0.5
    assert written["chip_hours_at_bound"] == pytest.approx(2000) and written["chip_hours_at_mfu"] == pytest.approx(2500)


def test_what_does_not_fit_is_said_loudly(plan):
    memory = dataclasses.replace(plan.train.memory, work=15 * GIB)
    page = report(with_train(plan, memory=memory, collectives=None), "a run")
    assert "19.75  of 15.75: DOES NOT FIT" in page
    assert "collectives: unknown, since the compiler stopped" in page and "interconnect" not in page
    sample = dataclasses.replace(plan.sample, fits=False)
    page = report(dataclasses.replace(plan, sample=sample, largest_batch=0), "a run")
    assert "DOES NOT FIT: lower sample.batch_size" in page and "none fits" in page


def test_estimates_are_called_estimates_and_slow_networks_named(plan):
    bound = Bound(0.0125, 0.02, 0.005, 0.03)
    page = report(with_train(plan, compile_seconds=None, bound=bound), "a run")
    assert "kept for the backward pass, estimated" in page and "128 images  estimated" in page
    assert "between slices or nodes        30.00" in page and "set by slow network" in page
    assert page.endswith("from shapes alone")


def test_what_was_not_asked_for_is_not_there(plan):
    less = dataclasses.replace(plan, sample=None, largest_batch=None)
    page = report(less, "a run")
    assert "sampling" not in page and "largest batch" not in page
    assert less.to_json()["sample"] is None
