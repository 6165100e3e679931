"""The shape of the code base: who imports whom, what is public, how long things are, what starting reads."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from . import structure
from .structure import modules
from .waiting import HUNG

MODULES = sorted(modules())
REPOSITORY = structure.ROOT.parents[1]
MAX_LINES, MAX_FUNCTION = 450, 60
# Class names that two modules have, and why neither gives way.
SHARED_NAMES: dict[str, str] = {}
# Modules that a start reads, Python's own 26 included: 73 and 150 when this was written.
STARTS = {("-c", "import canvaslm"): 95, ("-m", "canvaslm.cli.main", "--help"): 180}


def test_the_table_has_every_package() -> None:
    assert set(structure.packages()) == set(structure.IMPORTS) == set(structure.KNOWS)


@pytest.mark.parametrize("package", structure.packages())
def test_the_table_says_exactly_who_imports_whom(package: str) -> None:
    assert structure.imported_packages(package) == set(structure.IMPORTS[package])


@pytest.mark.parametrize("name", structure.FREE)
def test_shared_vocabulary_imports_what_the_table_says(name: str) -> None:
    assert structure.module_imports(name, typing_too=True) == structure.FREE_IMPORTS.get(name, set())


@pytest.mark.parametrize(
    "name", sorted({*structure.FREE_IMPORTS["types"], *structure.FREE_IMPORTS["options"]})
)
def test_what_the_vocabulary_is_made_of_imports_no_more(name: str) -> None:
    assert structure.module_imports(name, typing_too=True) == structure.FREE_IMPORTS.get(name, set())


def test_packages_form_no_circle() -> None:
    graph = {name: frozenset(others) for name, others in structure.IMPORTS.items()}
    assert not structure.circles(graph)


def test_modules_form_no_circle() -> None:
    """Imports inside functions count as well: they hide a circle, they do not undo it."""
    assert not structure.circles({name: structure.module_imports(name) for name in modules()})


def test_a_circle_would_be_found() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}
    assert structure.circles(graph) == [["a", "b", "c"]]
    assert not structure.circles(
        {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset(), "d": frozenset("ab")}
    )


def test_applications_do_not_import_each_other() -> None:
    applications = {*structure.APPLICATIONS, "cli"}
    for name in structure.APPLICATIONS:
        assert not structure.imported_packages(name) & applications


@pytest.mark.parametrize("package", structure.NO_TORCH)
def test_what_knows_no_tensors_never_imports_torch(package: str) -> None:
    for module in MODULES:
        if structure.package_of(module) == package:
            named = {name.partition(".")[0] for name in structure.imports(module, typing_too=True)}
            assert "torch" not in named, module


@pytest.mark.parametrize("module", MODULES)
def test_imports_inside_the_package_are_relative(module: str) -> None:
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not [name for name in names if name.partition(".")[0] == "canvaslm"], f"line {node.lineno}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", MODULES)
def test_modules_state_their_public_names(module: str) -> None:
    """Every module with definitions has `__all__`, and all it names exists."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    if not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in tree.body):
        return
    targets = [n.targets[0] for n in tree.body if isinstance(n, ast.Assign)]
    assert any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)
    loaded = importlib.import_module(f"canvaslm.{module}".rstrip("."))
    for name in loaded.__all__:
        assert hasattr(loaded, name), name


def python_files() -> list[Path]:
    folders = (structure.ROOT, REPOSITORY / "tests", REPOSITORY / "benchmarks")
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def test_files_stay_readable() -> None:
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert not {path: count for path, count in lengths.items() if count > MAX_LINES}


def test_functions_stay_short() -> None:
    long = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long[f"{path}:{node.name}"] = lines
    assert not long


def test_lines_of_pages_stay_short() -> None:
    """110 columns, as ruff holds the code to; tables and code blocks in pages have their own width."""
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
    assert pages
    for page in pages:
        fenced = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            free = fenced or line.startswith(("|", "<!--", "![", "    "))
            assert free or len(line) <= 110 or " " not in line.strip(), f"{page.name}:{number}"


def test_a_class_name_has_one_owner() -> None:
    owners = defaultdict(set)
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                owners[node.name].add(module)
    shared = {name: places for name, places in owners.items() if len(places) > 1}
    assert {name: places for name, places in shared.items() if name not in SHARED_NAMES} == {}
    assert set(SHARED_NAMES) <= set(shared), "an exception that is not needed any more"


def test_the_page_has_the_table() -> None:
    """`python -m tests.structure` writes it anew."""
    page = structure.PAGE.read_text(encoding="utf-8")
    assert structure.page_with_table(page) == page


@pytest.mark.parametrize("arguments", STARTS, ids=["import", "help"])
def test_starting_reads_few_modules_and_no_torch(arguments: tuple[str, ...]) -> None:
    """What starting costs, counted in modules: the same on every machine, busy or not."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True, text=True, check=True, timeout=HUNG,
    )  # fmt: skip
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    read = {line.rsplit("|", 1)[1].strip() for line in lines}
    assert not read & {"torch", "numpy", "transformers", "tokenizers", "jinja2", "huggingface_hub", "fastapi"}
    assert len(read) < STARTS[arguments], sorted(read)
