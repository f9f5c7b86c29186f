"""Precision, recall, density and coverage against reference implementations and by definition."""

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import precision_recall
from diffusion_jax.evaluation.metrics.precision_recall import squared_radii


@pytest.mark.parametrize("name", ["small", "large", "singular"])
def test_equals_the_reference_implementations(golden_metrics, golden_features, name):
    fake, real = golden_features(name)
    values, stored = golden_metrics
    want = values[name]["precision_recall"]
    ours = precision_recall(real, fake)
    assert round(ours.precision * len(fake)) == want["adm_precision_count"]
    assert round(ours.recall * len(real)) == want["adm_recall_count"]
    assert ours.precision == pytest.approx(want["torch_fidelity_precision"], abs=1e-6)
    assert ours.recall == pytest.approx(want["torch_fidelity_recall"], abs=1e-6)
    np.testing.assert_allclose(squared_radii(fake), stored[f"{name}_sq_radius_k3_gen"], rtol=1e-9)
    np.testing.assert_allclose(squared_radii(real), stored[f"{name}_sq_radius_k3_ref"], rtol=1e-9)
    want = values[name]["prdc_k5_strict"]
    np.testing.assert_allclose(
        precision_recall(real, fake, 5, strict=True), [want[key] for key in want], rtol=0, atol=1e-12
    )


def test_float16_distances_and_other_k_show(golden_metrics, golden_features):
    fake, real = golden_features("small")
    want = golden_metrics[0]["small"]["precision_recall"]
    assert abs(want["adm_float16_emulated_precision"] - want["adm_precision"]) > 0.01
    for k in (2, 4):
        assert abs(precision_recall(real, fake, k).precision - want["adm_precision"]) > 0.01


@pytest.mark.parametrize("block_entries", [1, 1000, 77_777])
def test_blocks_do_not_matter(golden_features, block_entries):
    fake, real = golden_features("singular")
    whole = precision_recall(real, fake)
    assert precision_recall(real, fake, block_entries=block_entries) == whole


def test_a_set_against_itself_and_swapped_sets(golden_features):
    fake, real = golden_features("small")
    same = precision_recall(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    forth, back = precision_recall(real, fake), precision_recall(fake, real)
    assert (forth.precision, forth.recall) == (back.recall, back.precision)


def test_duplicates_have_radius_zero_and_lie_inside_it():
    rng = np.random.default_rng(0)
    real = np.repeat(rng.normal(size=(5, 3)), 4, axis=0)
    assert (squared_radii(real) < 1e-12).all()
    fake = np.concatenate([real[::4], real[::4] + 1])
    ours = precision_recall(real, fake)
    assert ours.precision == 0.5 and ours.coverage == 1
    assert precision_recall(real, fake, strict=True).precision == 0


def test_far_from_zero_nothing_changes(golden_features):
    fake, real = golden_features("small")
    assert precision_recall(real + 1e6, fake + 1e6) == precision_recall(real, fake)


def test_refuses_what_has_no_neighbours():
    with pytest.raises(UserError, match=r"fake features have shape \[3, 2\]; \[N, D\] is needed, with N ≥ 4"):
        precision_recall(np.zeros((9, 2)), np.zeros((3, 2)))
    with pytest.raises(UserError, match="k=0 neighbours"):
        precision_recall(np.zeros((9, 2)), np.zeros((9, 2)), 0)
    with pytest.raises(UserError, match="real images have 2 features and fake ones 3"):
        precision_recall(np.zeros((9, 2)), np.zeros((9, 3)))
