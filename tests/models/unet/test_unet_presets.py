"""Parameters and multiply-adds of the published UNets."""

import jax
import pytest
from flax import nnx

from diffusion_jax.interop.mapping import parameter_paths
from diffusion_jax.models.backbones import backbone_macs
from diffusion_jax.models.conditioning.conditioners import ClassTokenConditioner
from diffusion_jax.models.presets import preset
from diffusion_jax.models.unet.noisy_classifier import NOISY_CLASSIFIERS, NoisyClassifier

RELEASED = {  # name: (parameters, GMAC)
    "ldm-8-imagenet256": (394_984_196, 57.0),
    "ldm-4-imagenet256": (400_920_579, 104.2),
    "ldm-celebahq256": (274_056_163, 101.2),
    "ldm-lsun-church256": (294_966_916, 20.9),
    "ldm-text2img-1.45b": (872_300_484, 91.0),
    "ldm-text2img256": (403_623_939, 105.7),
    "ldm-layout2img256": (246_277_379, 75.6),
    "ldm-semantic256": (215_229_315, 103.8),
    "ldm-inpainting": (215_230_467, 103.8),
    "ldm-inpainting-big": (387_245_827, 150.4),
    "ldm-bsr-sr": (113_622_563, 40.2),
}
SWEEP = {
    "ldm-1-sweep-imagenet256": (396_835_971, 594.2),
    "ldm-2-sweep-imagenet256": (390_888_578, 269.3),
    "ldm-16-sweep-imagenet256": (395_002_632, 13.7),
    "ldm-32-sweep-imagenet256": (395_039_504, 3.4),
    "ldm-1-sweep-celebahq256": (270_458_115, 566.4),
    "ldm-2-sweep-celebahq256": (264_510_722, 241.5),
    "ldm-8-sweep-celebahq256": (257_733_124, 39.8),
    "ldm-16-sweep-celebahq256": (257_751_560, 9.4),
}
# The papers print the counts of these to three digits.
OTHERS = {
    "rdm-768": 1_335_480_400,
    "ldm-sr-169m": 168_762_083,
    "ddpm-cifar10": 35_746_307,
    "ddpm-256": 113_673_219,
    "iddpm-cifar10": 52_546_438,
    "iddpm-imagenet64": 121_063_942,
    "adm-imagenet64": 295_904_454,
    "adm-imagenet128": 421_529_606,
    "adm-imagenet256": 553_838_086,
    "adm-imagenet256-uncond": 552_814_086,
    "adm-imagenet512": 558_997_638,
}
LDM_8_BLOCKS = {  # part of the class-conditional LDM-8: (parameters of its residual block, of its attention)
    "encoder/levels/0/blocks/0": (1_443_584, 1_578_240),
    "encoder/levels/0/blocks/1": (1_443_584, 1_578_240),
    "encoder/levels/1/blocks/0": (4_197_888, 5_777_920),
    "encoder/levels/1/blocks/1": (5_246_464, 5_777_920),
    "encoder/levels/2/blocks/0": (15_735_808, 22_041_600),
    "encoder/levels/2/blocks/1": (19_930_112, 22_041_600),
    "encoder/mid1": (19_930_112, 22_041_600),
    "encoder/mid2": (19_930_112, 0),
    "decoder/levels/2/blocks/0": (31_467_520, 22_041_600),
    "decoder/levels/2/blocks/1": (31_467_520, 22_041_600),
    "decoder/levels/2/blocks/2": (26_223_616, 22_041_600),
    "decoder/levels/1/blocks/0": (10_754_048, 5_777_920),
    "decoder/levels/1/blocks/1": (8_131_584, 5_777_920),
    "decoder/levels/1/blocks/2": (6_820_352, 5_777_920),
    "decoder/levels/0/blocks/0": (2_821_120, 1_578_240),
    "decoder/levels/0/blocks/1": (2_165_248, 1_578_240),
    "decoder/levels/0/blocks/2": (2_165_248, 1_578_240),
}
LDM_8_OTHERS = {
    "time_embed": 1_312_768,
    "encoder/conv_in": 9_472,
    "encoder/levels/0/downsampler": 590_080,
    "encoder/levels/1/downsampler": 2_359_808,
    "decoder/levels/2/upsampler": 9_438_208,
    "decoder/levels/1/upsampler": 2_359_808,
    "decoder/norm_out": 512,
    "decoder/conv_out": 9_220,
}


def count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(module))


def check_count_and_cost(name, parameters, gmac):
    published = preset(name)
    model = published.abstract()
    assert count(model) == parameters
    # The table prints one decimal.
    tolerance = max(5e-3 * gmac, 0.05 + 1e-6)
    assert abs(backbone_macs(model, published.input_shape, published.conditioning) / 1e9 - gmac) <= tolerance
    return model


@pytest.mark.parametrize("name", RELEASED)
def test_released_models(name):
    model = check_count_and_cost(name, *RELEASED[name])
    if name == "ldm-8-imagenet256":
        sizes = {path: leaf.size for path, leaf in parameter_paths(model).items()}

        def count_below(prefix):
            return sum(size for path, size in sizes.items() if path.startswith(f"{prefix}/"))

        for path, (residual, attention) in LDM_8_BLOCKS.items():
            assert (count_below(f"{path}/res"), count_below(f"{path}/attention")) == (residual, attention), path
        assert {path: count_below(path) for path in LDM_8_OTHERS} == LDM_8_OTHERS


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEP)
def test_the_models_of_the_sweep(name):
    check_count_and_cost(name, *SWEEP[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_models(name):
    assert count(preset(name).abstract()) == OTHERS[name]


def test_models_that_differ_in_name_only():
    options = preset("ldm-celebahq256").options
    assert preset("ldm-ffhq256").options == preset("ldm-lsun-bedroom256").options == options


@pytest.mark.parametrize(("label_drop", "parameters"), [(0.0, 512_000), (0.1, 512_512)])
def test_class_tokens_have_the_published_table(label_drop, parameters):
    conditioner = ClassTokenConditioner(num_classes=1000, label_drop=label_drop)
    assert conditioner.spec == preset("ldm-8-imagenet256").conditioning
    assert count(jax.eval_shape(lambda: conditioner.encoder(nnx.Rngs(0)))) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("ldm-8-g", 111_604_200), ("adm-256", 54_096_360)])
def test_classifiers(name, parameters):
    model = jax.eval_shape(lambda: NoisyClassifier(num_classes=1000, **NOISY_CLASSIFIERS[name], rngs=nnx.Rngs(0)))
    assert count(model) == parameters
