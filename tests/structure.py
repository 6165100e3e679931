"""Who imports whom in `src/canvaslm`: the table, and what the source really does.

`python -m tests.structure` writes the table into docs/architecture.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import canvaslm

ROOT = Path(canvaslm.__file__).parent
PAGE = ROOT.parents[1] / "docs" / "architecture.md"
BEGIN = "<!-- packages: begin, written by `python -m tests.structure` -->"
END = "<!-- packages: end -->"

FREE = ("errors", "families", "options", "types", "version")  # everyone may import these
# What these import in turn: the parameters' own modules, which import no torch and nothing but `errors`.
FREE_IMPORTS = {
    "options": {"diffusion.options"},
    "types": {"diffusion.params"},
    "diffusion.params": {"errors"},
}

# What each package knows, for the page. `session` alone joins text and engine.
KNOWS = {
    "files": "where may be written, and files whole or not at all",
    "client": "servers over HTTP, asked",
    "ops": "tensors, formats, devices; kernels and their plain twins",
    "model": "the protocol of a model, the families, masks, the `Context` protocol",
    "diffusion": "schedule, accept rules, stopping; never the vocabulary axis",
    "text": "strings ↔ tokens; no torch",
    "weights": "checkpoints: finding, checking, reading, writing",
    "constrain": "what a canvas may say: languages and readouts; no torch, no strings of a chat format",
    "cache": "keys and values of sequences, and shared prefixes",
    "engine": "requests in, events out; never a string",
    "decisions": "questions about a state: prompts, labels, probabilities; no torch, no server's types",
    "session": "text in, text out",
    "server": "application: HTTP",
    "cli": "application: the command line; its commands start the other applications",
    "evals": "application: scores",
    "bench": "application: measurements",
    "train": "the objective, optimisers, checkpoints of a run",
    "demo": "the model that ships and how it was made",
}

# package -> the packages that it imports, exactly: one that is not used any more fails the test too.
IMPORTS: dict[str, tuple[str, ...]] = {
    "files": (),
    "client": (),
    "ops": (),
    "model": ("ops",),
    "diffusion": ("ops",),
    "text": (),
    "weights": ("diffusion", "files", "model", "ops"),
    "constrain": ("ops",),
    "cache": ("model", "ops"),
    "engine": ("cache", "diffusion", "model", "ops"),
    "decisions": ("text",),
    "session": ("constrain", "decisions", "diffusion", "engine", "model", "ops", "text", "weights"),
    "server": ("constrain", "decisions", "diffusion", "engine", "session", "text", "weights"),
    "evals": ("client", "demo", "diffusion", "engine", "files", "session", "text"),
    "bench": ("client", "demo", "diffusion", "engine", "files", "model", "ops", "session"),
    "train": ("files", "model", "ops", "text", "weights"),
    "demo": ("files",),
    "cli": (
        "bench", "client", "decisions", "demo", "diffusion", "evals", "files", "model", "ops", "server",
        "session", "text", "train", "weights",
    ),
}  # fmt: skip
APPLICATIONS = ("server", "evals", "bench")  # they do not import each other, nor `cli`
NO_TORCH = ("constrain", "decisions", "text")


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name without `canvaslm.`; packages by their folder's."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def package_of(module: str) -> str:
    """`ops.cpu.head` is of `ops`; a file at the top is a package of its own."""
    return module.partition(".")[0]


def packages() -> list[str]:
    """The packages that the table is about."""
    names = {package_of(name) for name in modules()}
    return sorted(names - {"", "__main__", *FREE})


def imports(module: str, *, typing_too: bool) -> Iterator[str]:
    """The absolute name of all that a module imports anywhere, inside functions too.

    Of `from package import name`, the module of that name if there is one, else the package.
    `typing_too`: also what stands under `if TYPE_CHECKING`, which never runs.
    """
    path = modules()[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set() if typing_too else set(_under_type_checking(tree))
    own = module.split(".") if module else []
    folder = own if path.name == "__init__.py" else own[:-1]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["canvaslm", *folder[: len(folder) - node.level + 1]] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{name}.{alias.name}"
                yield inner if inner.removeprefix("canvaslm.") in modules() else name


def _under_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                yield from ast.walk(statement)


@cache
def module_imports(module: str, *, typing_too: bool = False) -> frozenset[str]:
    """The modules of the package that a module imports; of a folder's `__init__` also what it loads when
    asked for it, which stands under `if TYPE_CHECKING` there."""
    typing_too = typing_too or modules()[module].name == "__init__.py"
    names = {
        f"{name}.".removeprefix("canvaslm.").rstrip(".")
        for name in imports(module, typing_too=typing_too)
        if name.partition(".")[0] == "canvaslm"
    }
    return frozenset(names & set(modules())) - {module}


def imported_packages(package: str) -> set[str]:
    """The packages that the modules of one import, types that are only checked included."""
    return {
        package_of(name)
        for module in modules()
        if package_of(module) == package
        for name in module_imports(module, typing_too=True)
    } - {package, *FREE, ""}


def circles(graph: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of two or more)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def table() -> str:
    """The table of docs/architecture.md, between its marker lines."""
    rows = ["| package | what it knows | imports (besides `types`, `errors`) |", "|---|---|---|"]
    for name in KNOWS:
        others = ", ".join(f"`{other}`" for other in IMPORTS[name]) or "–"
        rows.append(f"| `{name}` | {KNOWS[name]} | {others} |")
    return "\n".join([BEGIN, *rows, END])


def page_with_table(text: str) -> str:
    """A page with what stands between its marker lines written anew. Raises ValueError without these."""
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    return text[:begin] + table() + text[end:]


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


__all__ = [
    "APPLICATIONS", "BEGIN", "END", "FREE", "FREE_IMPORTS", "IMPORTS", "KNOWS", "NO_TORCH", "PAGE", "ROOT",
    "circles", "imported_packages", "imports", "module_imports", "modules", "package_of", "packages",
    "page_with_table", "table",
]  # fmt: skip
