"""docs/evaluation.md: it names what there is, and its example runs."""

import pathlib
import re

import pytest

from diffusion_jax.evaluation.networks.inception_weights import FILE_NAMES
from diffusion_jax.evaluation.protocols import PROTOCOLS
from diffusion_jax.evaluation.settings import METRIC_NEEDS

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


@pytest.mark.parametrize("names", [METRIC_NEEDS, PROTOCOLS, FILE_NAMES[:1]], ids=["metrics", "protocols", "weights"])
def test_the_page_names_everything(names):
    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_the_example_runs():
    scope: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1), scope)
    assert 0.1 < scope["distance"] < 1 and scope["found"].precision > 0.5
