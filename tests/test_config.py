"""Config files, overrides, and what happens to mistakes in them."""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Literal

import pytest

from diffusion_jax.config import (
    complete,
    differences,
    from_json,
    load_config,
    one_of,
    override,
    read_config,
    to_json,
    variant_words,
    with_changes,
)
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.errors import UserError
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.schema import OpenFloat, Section, convert


def small(
    *,
    width: int,
    rate: float = 0.5,
    mode: Literal["fast", "slow"] = "fast",
    extra: int | None = None,
    sizes: tuple[int, ...] | None = None,
    ctx=None,
):
    return ("small", width, rate, mode, extra, ctx)


def large(*, width: int = 7, shape: tuple[int, ...] = (1, 2), verbose: bool = False):
    return ("large", width, shape, verbose)


SCHEMA = {
    "part": Section({"small": small, "large": large}, frozenset({"ctx"})),
    "other": Section(large),
    "spare": Section({"none": lambda: None, "small": small}, default="none"),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "from diffusion_jax.config import variant_words\n"
        "def get_config(variant=None):\n"
        "    words = variant_words(variant, ['smoke'])\n"
        "    return ConfigDict({'part': {'name': 'small', 'width': 3 if 'smoke' in words else 8}})\n"
    )
    return str(path)


def test_defaults_fill_what_the_file_leaves_out(file):
    config = load_config(file, [], SCHEMA)
    assert config.part.to_dict() == {
        "name": "small",
        "width": 8,
        "rate": 0.5,
        "mode": "fast",
        "extra": None,
        "sizes": None,
    }
    assert config.spare.to_dict() == {"name": "none"}
    assert config.other.to_dict() == {"width": 7, "shape": (1, 2), "verbose": False}
    assert load_config(file + ":smoke", [], SCHEMA).part.width == 3


def test_overrides_reach_every_kind_of_value(file):
    overrides = [
        "--config.part.rate=2",
        "--config.part.extra=4",
        "--config.part.mode=slow",
        "--config.other.shape=(3,)",
        "--config.other.verbose=true",
        "--config.part.width",
        "5",
    ]
    config = load_config(file, overrides, SCHEMA)
    assert (config.part.rate, config.part.extra, config.part.mode, config.part.width) == (2.0, 4, "slow", 5)
    assert isinstance(config.part.rate, float)
    assert (config.other.shape, config.other.verbose) == ((3,), True)


def test_an_optional_value_can_be_unset(file):
    config = load_config(file, ["--config.part.extra=4", "--config.part.extra=None"], SCHEMA)
    assert config.part.extra is None
    assert load_config(file, ["--config.part.sizes=(4,5)"], SCHEMA).part.sizes == (4, 5)
    assert load_config(file, ["--config.part.extra=None", "--config.part.extra=4"], SCHEMA).part.extra == 4
    with pytest.raises(UserError, match="None"):
        load_config(file, ["--config.part.width=None"], SCHEMA)


def test_another_name_keeps_the_keys_that_both_have(file):
    config = load_config(file, ["--config.part.shape=(4, 5)", "--config.part.name=large"], SCHEMA)
    assert config.part.to_dict() == {"name": "large", "width": 8, "shape": (4, 5), "verbose": False}
    slow = load_config(file, ["--config.part.name=large", "--config.part.width=7"], SCHEMA)
    with pytest.raises(UserError, match=r"part\.width is missing"):  # 7 is only the default of the old name
        override(slow.to_dict(), ["--config.part.name=small"], SCHEMA)
    changed = override(config.to_dict(), ["--config.part.name=small"], SCHEMA)
    assert changed.part.to_dict() == {
        "name": "small",
        "width": 8,
        "rate": 0.5,
        "mode": "fast",
        "extra": None,
        "sizes": None,
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.prat.width=3", "no section 'prat'; did you mean 'part'"),
        ("--config.part.widht=3", "part 'small' has no key 'widht'; did you mean 'width'"),
        ("--config.part.width=wide", "wide"),
        ("--config.part.width=3.5", "3.5"),
        ("--config.part.mode=fats", r"part.mode='fats' must be one of 'fast', 'slow'; did you mean 'fast'"),
        ("--config.part.name=smal", "part.name='smal' is not known; did you mean 'small'"),
        ("--config.part.width", "has no value"),
    ],
)
def test_bad_overrides_fail_in_one_line(file, override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(file, [override], SCHEMA)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"part": {"name": "small"}}, "part.width is missing"),
        ({"part": {"name": "small", "width": 1, "hight": 2}}, "part.hight is not an option of part 'small'"),
        ({"part": {"name": "small", "width": 1, "ctx": 2}}, "part.ctx is not an option"),
        ({"part": {"name": "small", "width": True}}, "part.width=True must be int"),
        ({"part": {"name": "small", "width": 1}, "pat": {}}, "no section 'pat'; did you mean 'part'"),
        ({"part": {"width": 1}}, "part.name=None is not known"),
    ],
)
def test_bad_configs_name_the_key(config, message):
    with pytest.raises(UserError, match=message):
        complete(config, SCHEMA)


def test_missing_file_and_variant_are_named(file, tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nothing\.py"):
        load_config(str(tmp_path / "nothing.py"), [], SCHEMA)
    with pytest.raises(UserError, match="config variant 'smok' is not known; did you mean 'smoke'"):
        load_config(file + ":smok", [], SCHEMA)
    assert variant_words("b,a", ["a", "b"]) == ("b", "a")


def test_json_round_trip_and_differences(file):
    config = load_config(file, [], SCHEMA)
    again = from_json(to_json(config), SCHEMA)
    assert again == config and isinstance(again.other.shape, tuple)
    other = load_config(file, ["--config.part.rate=0.75"], SCHEMA)
    assert differences(config, other) == {"part.rate": (0.5, 0.75)}


def test_build_passes_the_context_and_only_what_is_taken(file):
    config = load_config(file, [], SCHEMA)
    assert SCHEMA["part"].build("part", config.part, ctx="c", unused=1) == ("small", 8, 0.5, "fast", None, "c")


def test_convert_tells_types_apart():
    assert convert("k", [1, 2], tuple[int, int]) == (1, 2)
    assert convert("k", 3, float) == 3.0
    assert convert("k", None, int | None) is None
    for value, annotation in [(1.5, int), (True, float), ("1", int), ([1], tuple[int, int]), (None, str)]:
        with pytest.raises(UserError, match="k="):
            convert("k", value, annotation)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_only_an_open_number_may_be_infinite(number):
    message = re.escape(f"optimizer.lr={number!r} must be finite: float")
    for annotation in (float, float | None):
        with pytest.raises(UserError, match=message):
            convert("optimizer.lr", number, annotation)
    with pytest.raises(UserError, match="must be finite"):
        convert("ema_widths", (0.1, number), tuple[float, ...])
    if math.isnan(number):
        with pytest.raises(UserError, match="must be finite: float"):
            convert("sampler.s_max", number, OpenFloat)
    else:
        assert convert("sampler.s_max", number, OpenFloat) == number
    assert convert("sampler.s_max", 3, OpenFloat) == 3.0


def test_the_keys_that_may_be_infinite_are_those_of_open_ends():
    """A guidance interval without an upper end, and churn at every noise level; no other key of any part of a run."""
    open_keys = set()
    for place, section in DIFFUSION_SCHEMA.items():
        constructors = section.constructors
        for part in constructors.values() if isinstance(constructors, Mapping) else [constructors]:
            keys = section.options(part).items()
            open_keys |= {f"{place}.{key}" for key, option in keys if "may be infinite" in str(option.annotation)}
    assert open_keys == {"sampler.s_max", "guidance.interval"}
    section = Section({"cfg": ClassifierFreeGuidance})
    assert section.complete("guidance", {"name": "cfg", "interval": (0.3, math.inf)})["interval"] == (0.3, math.inf)
    with pytest.raises(UserError, match=r"guidance\.cfg_scale=nan must be finite: float$"):
        section.complete("guidance", {"name": "cfg", "cfg_scale": math.nan})


@pytest.mark.parametrize("path", sorted(pathlib.Path("configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_shipped_config_is_complete_and_documents_its_command(path):
    from diffusion_jax.runs.kinds import kind_of

    written = read_config(str(path))
    schema = kind_of(written).schema
    assert set(override(written, [], schema)) == set(schema)
    assert f"--config {path}" in path.read_text()


def test_one_word_of_a_table_is_picked():
    assert one_of(("smoke", "cifar10"), {"celeba64": 1, "cifar10": 2}, "celeba64") == "cifar10"
    assert one_of(("smoke",), ["celeba64", "cifar10"], "celeba64") == "celeba64"
    assert one_of(("cifar10", "cifar10"), ["celeba64", "cifar10"], "celeba64") == "cifar10"
    with pytest.raises(UserError, match="names 'celeba64' and 'cifar10', which exclude each other: name one of them"):
        one_of(("cifar10", "celeba64"), ["celeba64", "cifar10", "cub128"], "celeba64")


def test_changes_reach_into_sections_and_leave_the_arguments_alone():
    config, changes = {"part": {"name": "small", "width": 8}, "other": {}}, {"part": {"width": 3}, "spare": {"a": 1}}
    assert with_changes(config, changes) == {
        "part": {"name": "small", "width": 3},
        "other": {},
        "spare": {"a": 1},
    }
    assert config["part"]["width"] == 8 and changes == {"part": {"width": 3}, "spare": {"a": 1}}
