"""Numbers on the command line."""

import pytest

from diffusion_jax.__main__ import run
from diffusion_jax.errors import UserError

SAMPLE = ("--workdir=runs/none", "--out=out", "--num=1")


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "Infinity"])
@pytest.mark.parametrize("flag", ["cfg-scale", "guide-scale", "classifier-scale", "similarity-scale"])
def test_scales_must_be_finite(flag, word):
    with pytest.raises(UserError, match=rf"^--{flag.replace('-', '_')}={word}: must be a finite number$"):
        run("sample", [*SAMPLE, f"--{flag}={word}"])


def test_bounds_and_words_that_are_no_numbers_are_named():
    with pytest.raises(UserError, match=r"--sigma_rel=nan: must be a finite number"):
        run("ema", ["--workdir=a", "--out=b", "--sigma-rel=nan"])
    with pytest.raises(UserError, match=r"--mfu=2"):
        run("plan", ["--config=configs/digits.py", "--topology=h200x8", "--mfu=2"])
    with pytest.raises(UserError, match=r"--cfg_scale=two"):
        run("sample", [*SAMPLE, "--cfg-scale=two"])
