"""The checks that a user runs: all pass here, and each can fail."""

import numpy as np

from diffusion_jax.evaluation.self_check import Check, drawn_state_dict, ramp, run_checks


def test_all_checks_pass():
    checks = list(run_checks())
    assert len(checks) == 25
    assert [check for check in checks if not check.passed] == []


def test_a_wrong_or_missing_value_fails():
    assert Check("", 1, 1 + 1e-9, 1e-8).passed
    assert not Check("", 1, 1 + 1e-7, 1e-8).passed
    assert not Check("", 1, float("nan"), 1e-8).passed


def test_weights_and_image_are_those_of_the_references(inception_state_dict, inception_images):
    drawn = drawn_state_dict()
    assert drawn.keys() == inception_state_dict.keys()
    assert all(np.array_equal(drawn[name], tensor) for name, tensor in inception_state_dict.items())
    assert np.array_equal(ramp(), inception_images("a")[4:5])
