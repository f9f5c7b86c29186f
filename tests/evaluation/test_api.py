"""The names and arguments that programs of others may rely on."""

import inspect

import pytest

from diffusion_jax import evaluation

SIGNATURES = {
    "frechet_distance": ["mu1", "sigma1", "mu2", "sigma2"],
    "inception_score": ["logits_or_probs", "splits", "convention"],
    "kernel_distance": ["real", "fake", "subsets", "subset_size", "seed"],
    "precision_recall": ["real", "fake", "k"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_functions_take_what_they_are_published_with(name):
    parameters = inspect.signature(getattr(evaluation, name)).parameters.values()
    assert [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY] == SIGNATURES[name]


def test_classes_do_what_they_are_published_with():
    assert {"update", "merge", "finalise"} <= set(dir(evaluation.FeatureStatistics))
    assert next(iter(inspect.signature(evaluation.InceptionV3.from_state_dict).parameters)) == "state_dict"
