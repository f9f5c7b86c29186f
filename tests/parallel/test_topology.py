"""Names of topologies."""

import importlib.util

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.topology import CHIPS, absent_devices, parse_topology


@pytest.mark.parametrize(
    ("name", "kind", "shape", "slices"),
    [
        ("v5e:4x4", "v5e", (4, 4), 1),
        ("v5e-16", "v5e", (4, 4), 1),
        ("v5e-8", "v5e", (2, 4), 1),
        ("v5e-256", "v5e", (16, 16), 1),
        ("v6e-64", "v6e", (8, 8), 1),
        ("v5p-8", "v5p", (2, 2, 1), 1),
        ("v5p-128", "v5p", (4, 4, 4), 1),
        ("v5p-256", "v5p", (4, 4, 8), 1),
        ("2xv5e:16x16", "v5e", (16, 16), 2),
        ("4xv6e-256", "v6e", (16, 16), 4),
        ("h200x8", "h200", (8,), 1),
        ("a100x4", "a100", (4,), 1),
        ("h100x64", "h100", (8,), 8),
    ],
)
def test_names_stand_for_chips(name, kind, shape, slices):
    topology = parse_topology(name)
    assert (topology.kind, topology.shape, topology.num_slices) == (kind, shape, slices)
    assert topology.chip is CHIPS[kind]


def test_v5p_is_named_by_its_cores():
    assert parse_topology("v5p-128").num_chips == 64
    assert parse_topology("2xv5e-16").num_chips == 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5f:4x4", "no chip 'v5f'; did you mean"),
        ("v5e", "not a topology"),
        ("v5e:4x4x4", "v5e slices have 2 axes and at most 256 chips"),
        ("v5e:32x16", "v5e slices have 2 axes and at most 256 chips"),
        ("v5e:0x4", "v5e slices have 2 axes"),
        ("0xv5e:4x4", "v5e slices have 2 axes"),
        ("v5e-12", "12 cores are no slice"),
        ("v5p-4", "4 cores are no slice"),
        ("v5p-9", "9 cores are no slice"),
        ("v5ex8", "v5e is not named like this"),
        ("h200-8", "h200 is not named like this"),
        ("2xh200x8", "h200 is not named like this"),
        ("h200x12", "up to 8 GPUs or a multiple of 8"),
        ("h200x0", "up to 8 GPUs or a multiple of 8"),
    ],
)
def test_other_names_are_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs libtpu.*pip install 'diffusion_jax\[tpu\]'"):
        absent_devices(parse_topology("v5e:2x2"))
