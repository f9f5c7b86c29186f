import pathlib
import re

import numpy as np
import pytest

from diffusion_jax.diffusion.grids import GRIDS
from diffusion_jax.diffusion.losses import LOSSES
from diffusion_jax.diffusion.paths import PATHS
from diffusion_jax.diffusion.samplers import SAMPLERS

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "diffusion.md").read_text()


@pytest.mark.parametrize("registry", [GRIDS, LOSSES, PATHS, SAMPLERS], ids=["grids", "losses", "paths", "samplers"])
def test_the_page_names_everything(registry):
    assert [name for name in registry if f"`{name}`" not in PAGE] == []


def test_the_equations_are_numbered_and_cited():
    assert re.findall(r"^\*\*\((\d+)\)", PAGE, re.MULTILINE) == [str(n) for n in range(1, 11)]
    sources = "".join(path.read_text() for path in (ROOT / "diffusion_jax" / "diffusion").rglob("*.py"))
    cited = {int(n) for n in re.findall(r"docs/diffusion\.md, eq\. (\d+)", sources)}
    assert cited == set(range(1, 11))


def test_the_example_runs():
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict = {}
    exec(code.group(1), scope)
    assert scope["images"].shape == (4, 8, 8, 3) and np.all(np.isfinite(scope["images"]))
    assert scope["per_sample"].shape == (4,)
