"""The shape of the code base: who may import whom, what is public, and what importing costs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import canvaslm

ROOT = Path(canvaslm.__file__).parent
FREE = {
    "types",
    "errors",
}  # everyone may import these; they import nothing, but for Params, which is the table itself
TABLE = "diffusion/params.py"
NAMES = {"__version__"}  # what the top package itself may be asked for

# package -> packages it may import. `session` is the one file that joins text and engine.
ALLOWED: dict[str, set[str]] = {
    "ops": set(),
    "model": {"ops"},
    "diffusion": {"ops"},
    "text": set(),
    "weights": {"ops", "model", "diffusion", "text"},
    "cache": {"ops", "model", "diffusion"},
    "constrain": {"ops", "model", "diffusion", "text"},
    "engine": {"ops", "model", "diffusion", "weights", "cache", "constrain"},
    "session": {"ops", "model", "diffusion", "weights", "cache", "constrain", "engine", "text", "demo"},
    "train": {"ops", "model", "weights", "diffusion", "text", "demo"},
    "demo": {"ops", "model", "weights", "text", "train"},
    "evals": {"session", "engine", "model", "diffusion", "weights", "text", "demo"},
    "bench": {"session", "engine", "model", "diffusion", "weights", "text", "demo", "ops"},
    "server": {"session", "engine", "diffusion", "text", "weights", "model", "constrain"},
    "cli": {"*"},  # thin files that join everything
}
NO_TORCH = ("text",)


def packages() -> list[str]:
    names = [p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()]
    return sorted([*names, "session"])


def files_of(package: str) -> list[Path]:
    return [ROOT / "session.py"] if package == "session" else sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Packages of canvaslm, and "torch", that a file imports anywhere in it."""
    here = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["canvaslm", *here[: len(here) - node.level]] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            names = [module] if node.module else [f"{module}.{a.name}" for a in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "canvaslm" and len(parts) > 1:
                found.add(parts[1])
            elif parts[0] == "torch":
                found.add("torch")
    return found


def test_every_package_is_in_the_table() -> None:
    assert set(packages()) <= set(ALLOWED)


@pytest.mark.parametrize("package", packages())
def test_imports_follow_the_table(package: str) -> None:
    allowed = ALLOWED[package] | FREE | NAMES | {package, "torch"}
    if "*" in allowed:
        return
    for path in files_of(package):
        stray = imported(path) - allowed
        assert not stray, f"{path.relative_to(ROOT)} imports {stray}"


@pytest.mark.parametrize("name", sorted(FREE))
def test_shared_vocabulary_imports_nothing(name: str) -> None:
    path = ROOT / f"{name}.py"
    assert imported(path) == ({"diffusion"} if name == "types" else set())
    assert imported(ROOT / TABLE) == {"errors"}
    if name == "types":
        names = re.findall(r"from \.diffusion\.(\w+) ", path.read_text())
        assert sorted(names) == ["options", "params"]
        assert imported(ROOT / "diffusion" / "options.py") == set()


@pytest.mark.parametrize("package", NO_TORCH)
def test_text_never_imports_torch(package: str) -> None:
    for path in files_of(package):
        assert "torch" not in imported(path), path


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_state_their_public_names(path: Path) -> None:
    """Every module with definitions has `__all__`, and all it names exists."""
    tree = ast.parse(path.read_text())
    if not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in tree.body):
        return
    declared = [
        n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
    ]
    assert declared, f"{path.relative_to(ROOT)} has no __all__"
    module = importlib.import_module(
        ".".join(["canvaslm", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    )
    for name in module.__all__:
        assert hasattr(module, name), name


def test_files_stay_readable() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in ROOT.rglob("*.py")
        if (n := len(p.read_text().splitlines())) > 450
    }
    assert not long


@pytest.mark.parametrize("command", [["-c", "import canvaslm"], ["-m", "canvaslm.cli.main", "--help"]])
def test_starting_is_fast_and_imports_no_torch(command: list[str]) -> None:
    """Import times as Python itself reports them: a wall-clock limit alone would fail on a busy machine."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True
    )
    modules = {
        line.rsplit("|", 1)[1].strip() for line in run.stderr.splitlines() if line.startswith("import time:")
    }
    assert "torch" not in modules
    assert "transformers" not in modules
    times = []
    for _ in range(3):
        begin = time.process_time(), time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        times.append(time.perf_counter() - begin[1])
    assert min(times) < 1.5  # under 0.5 s on an idle machine; CI's is shared
