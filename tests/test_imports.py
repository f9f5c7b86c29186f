"""Classes and functions named as "package.module:Name"."""

import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.imports import import_class, import_function
from diffusion_jax.schema import Section


class Base:
    pass


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `outside` with a fitting class and others; forgotten afterwards."""
    source = "import importlib\nfrom collections import OrderedDict\nclass Sized(OrderedDict):\n"
    source += "    def __init__(self, *, size: int = 3): self.size = size\ndef function(): pass\n"
    (tmp_path / "outside.py").write_text(source)
    (tmp_path / "broken.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("outside", "broken"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)


def test_a_section_builds_and_checks_a_class_of_the_users(module):
    section = Section({"own": Base}, importable=dict)
    assert section.build("part", {"name": "outside:Sized", "size": 4}).size == 4
    assert section.complete("part", {"name": "outside:Sized"}) == {"name": "outside:Sized", "size": 3}
    with pytest.raises(UserError, match=r"part\.sise is not an option of part 'outside:Sized'; did you mean 'size'"):
        section.complete("part", {"name": "outside:Sized", "sise": 4})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside:Sised", "outside has no class of that name derived from dict; did you mean 'Sized'"),
        ("outside:function", "outside has no class of that name derived from dict"),
        ("subprocess:Popen", "subprocess has no class of that name derived from dict"),
        ("outsize:Sized", "Python finds no module 'outsize'; put its folder in the environment variable PYTHONPATH"),
        ("outside.inner:Sized", "Python finds no module"),
        ("outside:", "a class of your own is named 'package.module:Class'"),
        (":Sized", "a class of your own is named"),
        (".outside:Sized", "a class of your own is named"),
        ("outside:Sized.fromkeys", "a class of your own is named"),
    ],
)
def test_mistakes_are_one_line(module, name, message):
    with pytest.raises(UserError, match=message) as caught:
        import_class("part.name", name, dict)
    assert "\n" not in str(caught.value) and f"part.name={name!r}" in str(caught.value)


def test_a_function_of_the_users(module):
    assert import_function("--flag", "outside:function").__name__ == "function"
    with pytest.raises(UserError, match=r"--flag='outside:functions': outside has no function of that name; did you"):
        import_function("--flag", "outside:functions")
    with pytest.raises(UserError, match="outside has no function of that name"):
        import_function("--flag", "outside:Sized")


def test_what_the_module_itself_lacks_is_not_mistaken_for_the_module(module):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        import_class("part.name", "broken:Sized", dict)


def test_a_section_imports_only_where_it_may(module):
    with pytest.raises(UserError, match=r"part\.name='outside:Sized' is not known"):
        Section({"own": Base}).build("part", {"name": "outside:Sized"})
