"""The package as a whole: what importing it costs, what it exports, and which room may know of which."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from families import make_tokenizer, tiny_model, train_like
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import AutoModelForCausalLM

import uld_hf


ROOT = Path(uld_hf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ROOMS = sorted({file.relative_to(ROOT).parts[0] for file in FILES if file.parent != ROOT})
# Which rooms a room may know of, besides itself. The house itself (modules at the top) is the room "".
ALLOWED = {
    "": set(),
    "data": {""},
    "training": {""},
    "baselines": {"", "training"},
    "evaluation": {"", "data"},
    "bake": {"", "training", "evaluation"},
    "compare": {""},
    "cli": {"", "data", "training", "baselines", "evaluation", "bake", "compare"},
}


def room_of(module: str) -> str:
    """Room of one of our modules, given without the package's name: `training.losses` is in `training`."""
    first = module.split(".")[0]
    return first if first in ROOMS else ""


def imported_modules(file: Path, top_only: bool = False) -> set[str]:
    """Full names of all that a file imports, anywhere in it or at its top; relative imports resolved."""
    package = [uld_hf.__name__, *file.relative_to(ROOT).parent.parts]
    tree = ast.parse(file.read_text())
    modules = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            # `from . import losses` imports a module, `from .losses import x` does not: both names cost nothing here.
            modules |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return modules


def at_the_top(file: Path) -> set[str]:
    """What a file imports of ours before anything runs, without the package's name."""
    prefix = f"{uld_hf.__name__}."
    return {module.removeprefix(prefix) for module in imported_modules(file, top_only=True) if module != "uld_hf"}


def our_imports(file: Path) -> set[str]:
    """What a file imports of ours, without the package's name."""
    prefix = f"{uld_hf.__name__}."
    return {module.removeprefix(prefix) for module in imported_modules(file) if module.startswith(prefix)}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imported_by(code: str) -> set[str]:
    """Names of the modules that a new Python has after some code."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def installed_with(requirements: list[str]) -> set[str]:
    """Distributions that come with some, and with what they need."""
    found: set[str] = set()
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name not in found:
            found.add(name)
            waiting += [(needed, "") for needed in requires(name) or []]
        waiting += [(needed, extra) for extra in requirement.extras for needed in requires(name) or []]
    return found


# What the package needs of others only if it was installed with an extra.
OF_EXTRAS = {"compare/page.py": {"gradio", "starlette"}, "cli/pinned_model.py": {"fastapi"}}


def test_files_import_nothing_that_is_not_installed_with_the_package():
    there = installed_with([each for each in requires("uld_hf") if "extra ==" not in each])
    owners = packages_distributions()
    assert not there & {"gradio", "matplotlib", "pytest"}
    for file in FILES:
        roots = {module.split(".")[0] for module in imported_modules(file, top_only=True)}
        foreign = roots - set(sys.stdlib_module_names) - {"uld_hf"} - OF_EXTRAS.get(name_of(file), set())
        missing = [root for root in foreign if not there & {canonicalize_name(owner) for owner in owners[root]}]
        assert not missing, f"{file}: {missing}"


def test_importing_the_package_imports_nothing_large():
    # Modules are named, no seconds measured; CONTRIBUTING.md has these.
    modules = imported_by("import uld_hf")
    assert {module for module in modules if module.startswith("uld_hf")} == {"uld_hf"}
    assert not {"torch", "transformers", "numpy", "peft", "trl", "datasets"} & modules


def test_inference_imports_neither_trl_nor_datasets():
    modules = imported_by("import uld_hf\nuld_hf.ULDForCausalLM, uld_hf.ULDLogitsProcessor, uld_hf.build_assistant")
    assert "uld_hf.modeling_uld" in modules
    assert not {"trl", "datasets"} & modules


# What a program may have imported before it loads a saved model: the package and transformers, in any order.
ORDERS = {
    "the package first": "import uld_hf, transformers",
    "transformers first": "import transformers, uld_hf",
    "the auto classes first": "from transformers import AutoConfig, AutoModelForCausalLM\nimport uld_hf",
    "the configuration first": "from uld_hf import ULDModelConfig",
    "the model first": "from uld_hf import ULDForCausalLM",
    "the auto class's own module": "import uld_hf\nfrom transformers.models.auto.configuration_auto import AutoConfig",
}
LOAD = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, pipeline
config = AutoConfig.from_pretrained(sys.argv[1])
models = [
    AutoModelForCausalLM.from_pretrained(sys.argv[1]),
    AutoModelForCausalLM.from_pretrained(sys.argv[1], config=config),
    pipeline("text-generation", model=sys.argv[1]).model,
]
print(type(config).__name__, *[(type(model).__name__, list(model.assistants)) for model in models])
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model("llama").save_pretrained(folder / "target")
    target = AutoModelForCausalLM.from_pretrained(folder / "target")
    model = uld_hf.ULDForCausalLM(target=target, assistant=train_like(uld_hf.build_assistant(target, 2)))
    model.save_pretrained(folder / "unlearned")
    make_tokenizer().save_pretrained(folder / "unlearned")
    return folder / "unlearned"


# A new Python for each: these cover the three ways, from uld_hf, transformers and the model itself.
QUICK = ("the package first", "transformers first", "the model first")


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param(code, id=order, marks=[] if order in QUICK else [pytest.mark.slow])
        for order, code in ORDERS.items()
    ],
)
def test_importing_the_package_is_all_that_transformers_needs(saved, imports):
    code = f"{imports}\n{LOAD}"
    result = subprocess.run([sys.executable, "-c", code, saved], capture_output=True, text=True, check=True)
    model = ("ULDForCausalLM", ["assistant"])
    assert result.stdout.splitlines()[-1] == f"ULDModelConfig {model} {model} {model}"


def test_without_the_package_a_saved_model_is_refused(saved):
    result = subprocess.run([sys.executable, "-c", LOAD, saved], capture_output=True, text=True)
    assert result.returncode != 0
    assert "model type `uld`" in result.stderr


@pytest.mark.parametrize("imports", ["import uld_hf, transformers", "import uld_hf\nfrom uld_hf import subtraction"])
def test_names_of_functions_and_of_modules_do_not_hide_each_other(imports):
    code = f"{imports}\nprint([uld_hf.logit_difference.__name__, uld_hf.logit_difference.__name__])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["['logit_difference',", "'logit_difference']"]


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


def test_every_room_has_its_rule():
    assert set(ALLOWED) == {"", *ROOMS}


# The package's own __init__ takes its public names from every room: it has its own test.
@pytest.mark.parametrize("file", [file for file in FILES if file != ROOT / "__init__.py"], ids=name_of)
def test_dependencies_point_one_way(file):
    room = room_of(".".join(file.relative_to(ROOT).parts[:-1]))
    assert {module for module in our_imports(file) if room_of(module) not in {room, *ALLOWED[room]}} == set()


def test_no_module_imports_another_that_imports_it():
    """At its top, that is: ULDModelConfig imports the model when a configuration is made."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    graph = {
        name: {other for other in at_the_top(file) if other in names}
        for name, file in names.items()
        if file.name != "__init__.py"
    }
    while graph:  # take away whoever needs nobody that is left
        free = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in free}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_module_says_what_it_is_for(file):
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_the_package_itself_imports_its_modules_only_when_they_are_used():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert not [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]


def test_the_formula_knows_nothing_of_the_rest():
    assert our_imports(ROOT / "subtraction.py") == set()


@pytest.mark.parametrize("file", [file for file in FILES if file.parent == ROOT], ids=name_of)
def test_the_house_needs_no_training_libraries(file):
    roots = {module.split(".")[0] for module in imported_modules(file)}
    assert not roots & {"trl", "datasets", "pandas", "matplotlib"}
