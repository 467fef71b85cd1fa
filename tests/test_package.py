"""The package as a whole: what importing it costs, what it exports, and which room may know of which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import uld_hf


ROOT = Path(uld_hf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ROOMS = sorted({file.relative_to(ROOT).parts[0] for file in FILES if file.parent != ROOT})
# The house itself (modules at the top) is the room "". Whoever is not listed may import any room but the command line.
ALLOWED = {"": {""}, "data": {"data"}, "training": {"training", ""}}


def room_of(module: str) -> str:
    """Room of one of our modules, given without the package's name: `training.losses` is in `training`."""
    first = module.split(".")[0]
    return first if first in ROOMS else ""


def imported_modules(file: Path) -> set[str]:
    """Full names of all that a file imports, anywhere in it; relative imports resolved."""
    package = [uld_hf.__name__, *file.relative_to(ROOT).parent.parts]
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            # `from . import losses` imports a module, `from .losses import x` does not: both names cost nothing here.
            modules |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return modules


def our_imports(file: Path) -> set[str]:
    """What a file imports of ours, without the package's name."""
    prefix = f"{uld_hf.__name__}."
    return {module.removeprefix(prefix) for module in imported_modules(file) if module.startswith(prefix)}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_inference_imports_neither_trl_nor_datasets():
    code = (
        "import sys, uld_hf\n"
        "uld_hf.ULDForCausalLM, uld_hf.ULDLogitsProcessor, uld_hf.build_assistant\n"
        "print(sorted({'trl', 'datasets', 'pandas'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", uld_hf.__all__)
def test_every_public_name_is_there(name):
    assert getattr(uld_hf, name).__name__ == name
    assert name in dir(uld_hf)


def test_the_public_names_are_sorted_and_unique():
    assert sorted(set(uld_hf.__all__)) == uld_hf.__all__


@pytest.mark.parametrize("name", uld_hf.__all__)
def test_every_public_name_says_what_it_is(name):
    assert getattr(uld_hf, name).__doc__.strip()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'uld_hf' has no attribute 'ULDTrianer'"):
        uld_hf.ULDTrianer  # noqa: B018


def test_the_package_is_typed():
    assert (ROOT / "py.typed").is_file()


# The package's own __init__ takes its public names from every room: it has its own test.
@pytest.mark.parametrize("file", [file for file in FILES if file != ROOT / "__init__.py"], ids=name_of)
def test_dependencies_point_one_way(file):
    room = room_of(".".join(file.relative_to(ROOT).parts[:-1]))
    allowed = ALLOWED.get(room, {"", room, *ROOMS} - {"cli"} | {room})
    assert {module for module in our_imports(file) if room_of(module) not in allowed} == set()


def test_the_package_itself_imports_the_upper_rooms_only_when_they_are_used():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    at_import = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    assert at_import
    assert {room_of(module) for module in at_import} == {""}


def test_the_formula_knows_nothing_of_the_rest():
    assert our_imports(ROOT / "logit_difference.py") == set()


@pytest.mark.parametrize("file", [file for file in FILES if file.parent == ROOT], ids=name_of)
def test_the_house_needs_no_training_libraries(file):
    roots = {module.split(".")[0] for module in imported_modules(file)}
    assert not roots & {"trl", "datasets", "pandas", "matplotlib"}
