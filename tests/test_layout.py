"""The house stands: what an import loads, and which way imports point."""

import ast
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parents[1] / "diffusion_jax"

# From the ground up; a file imports from its own floor and those below.
FLOORS = (
    ("errors", "keys", "imports", "buckets", "files", "records", "schema", "config", "pictures", "parallel"),
    ("diffusion", "models"),
    ("data",),
    ("interop", "evaluation", "optim"),
    ("sections", "smoke", "autoencoding"),
    ("runs",),
    ("sampling",),
    ("training",),
    ("planning", "sweeping", "reporting", "api"),
    ("commands", "__main__", "__init__"),
)


def loaded_by(module: str) -> set[str]:
    """The modules of the library that are loaded after one has been imported, in a process of its own."""
    code = f"import sys, {module}\nprint(*(name for name in sys.modules if name.startswith('diffusion_jax')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(out.stdout.split())


def imports() -> dict[str, set[str]]:
    """Module to the modules of the library that it imports anywhere, those for type checking left out."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                node.body = []
        taken = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("diffusion_jax"):
                taken |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
            elif isinstance(node, ast.Import):
                taken |= {each.name for each in node.names}
        found[name] = taken
    return {name: {each for each in taken if each in found and each != name} for name, taken in found.items()}


def floor(module: str) -> int:
    part = module.split(".")[1] if "." in module else "__init__"
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def test_imports_point_downward():
    upward = [
        (name, other)
        for name, taken in imports().items()
        for other in taken
        if other != "diffusion_jax" and floor(other) > floor(name)
    ]
    assert upward == []


def test_models_and_diffusion_know_nothing_of_each_other_nor_of_data():
    for name, taken in imports().items():
        parts = {other.split(".")[1] for other in taken if "." in other}
        if name.startswith("diffusion_jax.models"):
            assert not parts & {"diffusion", "data", "files"}, name
        if name.startswith("diffusion_jax.diffusion"):
            assert not parts & {"models", "data", "files"}, name


def test_imports_have_no_circle():
    graph, done = imports(), set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle of imports: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for other in graph[name]:
                # A package's face imports from its own files, which name it only through one another.
                if not name.startswith(f"{other}.") and other != "diffusion_jax":
                    visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_package_loads_nothing():
    assert loaded_by("diffusion_jax") == {"diffusion_jax", "diffusion_jax.imports", "diffusion_jax.errors"}


def test_a_network_loads_layers_and_nothing_else():
    allowed = ("models.dit", "models.layers", "models.conditioning.parts", "models.conditioning.vector", "parallel")
    ground = {"diffusion_jax", "diffusion_jax.imports", "diffusion_jax.errors", "diffusion_jax.models"}
    further = {
        name
        for name in loaded_by("diffusion_jax.models.dit.dit") - ground - {"diffusion_jax.models.conditioning"}
        if not name.startswith(tuple(f"diffusion_jax.{part}" for part in allowed))
    }
    assert further == set()


def test_a_training_step_needs_no_evaluator():
    loaded = loaded_by("diffusion_jax.training.diffusion_step")
    assert {name for name in loaded if name.startswith("diffusion_jax.evaluation")} == {
        "diffusion_jax.evaluation",
        "diffusion_jax.evaluation.settings",
    }
    assert not {name for name in loaded if name.startswith(("diffusion_jax.sampling", "diffusion_jax.commands"))}
    assert len(loaded) <= 165
