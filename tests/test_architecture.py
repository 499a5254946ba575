"""The house keeps its shape: read from its source, and from what imports on a machine without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from textwrap import dedent

PACKAGE = Path(__file__).parents[1] / "src" / "newsdesk"
MODULES = sorted(PACKAGE.rglob("*.py"))

FOUNDATION = 0
ROOMS = (
    "hub",
    "data",
    "model",
    "runs",
    "training",
    "prediction",
    "evaluation",
    "exports",
    "reports",
    "experiments",
    "serving",
)
FRONT = ("api", "classifier", "__init__", "cli", "__main__")
RANK = {part: rank for rank, part in enumerate((*ROOMS, *FRONT), start=1)}
"""Where a part stands: it imports its own rank and lower ones. Top-level modules not named are the lowest."""

LIGHT_IN_HEAVY_ROOMS = (
    "newsdesk.model",
    "newsdesk.model.catalog",
    "newsdesk.model.architectures",
    "newsdesk.model.tokenizer",
    "newsdesk.training",
)
HEAVY_PACKAGES = ("torch", "transformers", "peft", "sklearn", "pyarrow")

LONGEST_MODULE = 500
LONGEST_FUNCTION = 60
TERMINAL = {
    "print",
    "input",
    "exit",
    "quit",
    "SystemExit",
    "sys.exit",
    "sys.stdout",
    "sys.stderr",
    "os._exit",
    "click.echo",
    "click.secho",
    "click.prompt",
    "click.confirm",
}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch.load"}


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a module's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))))


def module_name(path: Path) -> str:
    parts = ("newsdesk", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of whatever a module imports, at its top or inside a function."""
    package = ".".join(("newsdesk", *path.relative_to(PACKAGE).parent.parts))
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def used_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every name and attribute in a module's code, and of all it imports."""
    yield from imported_names(path)
    for node in nodes(path):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, dotted_name(node)


def dotted_name(node: ast.expr) -> str:
    """``sys.stdout`` as it stands in the code; what is no name, such as a call, is left empty."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def rank_of_module(path: Path) -> int:
    first, *rest = path.relative_to(PACKAGE).parts
    return RANK.get(first if rest else path.stem, FOUNDATION)


def rank_of_import(dotted: str) -> int:
    """What ``newsdesk`` itself offers at import (its version) belongs to the foundation."""
    return RANK.get(dotted.split(".")[1], FOUNDATION) if "." in dotted else FOUNDATION


def is_command_line(path: Path) -> bool:
    return rank_of_module(path) >= RANK["cli"]


def places(
    findings: Callable[[Path], Iterator[tuple[int, str]]], keep: Callable[[Path, str], bool]
) -> list[str]:
    """``module.py:line name`` of what ``findings`` yields and ``keep`` keeps, in all modules."""
    return [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in MODULES
        for line, name in findings(path)
        if keep(path, name)
    ]


def test_rooms_import_only_what_stands_before_them():
    def looks_ahead(path: Path, name: str) -> bool:
        return name.startswith("newsdesk.") and rank_of_import(name) > rank_of_module(path)

    assert places(imported_names, looks_ahead) == []


def test_nobody_imports_the_command_line():
    def enters_by_the_front(path: Path, name: str) -> bool:
        return f"{name}.".startswith("newsdesk.cli.") and not is_command_line(path)

    assert places(imported_names, enters_by_the_front) == []


def test_only_the_command_line_prints_asks_or_exits():
    def speaks(path: Path, name: str) -> bool:
        return name in TERMINAL and not is_command_line(path)

    assert places(used_names, speaks) == []


def test_nothing_can_load_a_pickle():
    def is_pickle(_path: Path, name: str) -> bool:
        return bool({name, name.partition(".")[0]} & PICKLES) or name.endswith(".read_pickle")

    keywords = [
        f"{path.relative_to(PACKAGE)}:{node.value.lineno} {node.arg}"
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
    ]
    assert places(used_names, is_pickle) + keywords == []


def test_modules_fit_in_a_head():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    too_long = {str(path.relative_to(PACKAGE)): n for path, n in lengths.items() if n > LONGEST_MODULE}
    assert too_long == {}


def test_functions_fit_on_a_screen():
    too_long = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert too_long == []


def light_modules() -> list[str]:
    """Every module that a machine with the base install alone must be able to import."""
    heavy = ("newsdesk.model", "newsdesk.training")
    names = {module_name(path) for path in MODULES if path.stem != "__main__"}
    return sorted(name for name in names if name in LIGHT_IN_HEAVY_ROOMS or not f"{name}.".startswith(heavy))


IMPORT_WITHOUT = dedent(
    """
    import importlib, json, sys, traceback

    blocked, modules = json.loads(sys.argv[1])

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in blocked:
                raise ModuleNotFoundError(f"{name} is not installed here", name=name)

    sys.meta_path.insert(0, Blocked())
    failures = {}
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            failures[module] = traceback.format_exc()
    print(json.dumps(failures))
    """
)


def import_failures(modules: list[str]) -> dict[str, str]:
    """Import the modules in a fresh process where the heavy packages are missing; tracebacks of failures."""
    command = [sys.executable, "-c", IMPORT_WITHOUT, json.dumps([HEAVY_PACKAGES, modules])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    failures: dict[str, str] = json.loads(result.stdout)
    return failures


def test_all_but_training_imports_without_torch():
    needs_torch = "newsdesk.model.network"  # shows that the heavy packages really are out of reach
    assert list(import_failures([*light_modules(), needs_torch])) == [needs_torch]


def test_no_two_test_files_share_a_name():
    """Pytest imports them by name: of two that share one, the second is not collected."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
