"""The layout of the code: which module may import which, and how long a file and a function may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.files import PROJECT_DIR

STAGES = (
    "evaluate_external",
    "material_dataset",
    "optimization",
    "pretrain_dimenet",
    "structure_generator",
    "test",
)
# A module imports from its own row and from the rows above it, a stage script or a script from every row but its own.
ORDER = ("pipeline", "geo_utils", "crystals", "networks", "generation", "models", "energetics", "evaluation")
LAST = len(ORDER)
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60  # without signature and docstring


def sources(*folders: str) -> list[Path]:
    """Python files at the top level and below the given folders."""
    return sorted([*PROJECT_DIR.glob("*.py"), *(path for name in folders for path in (PROJECT_DIR / name).rglob("*.py"))])


CODE = sources("scripts", *(name for name in ORDER if (PROJECT_DIR / name).is_dir()))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield node.lineno, node.module


def row(module: str) -> int | None:
    """Row of a module of the project in ORDER; LAST for stage scripts and scripts; None for libraries."""
    room = module.split(".")[0]
    if room in ORDER:
        return ORDER.index(room)
    return LAST if room in STAGES or room == "scripts" else None


def arrows_against_the_order(source: str, module: str) -> list[str]:
    """Imports of a source text that the order does not allow, each as "line: module"."""
    own = row(module)
    found = []
    for line, name in imported(ast.parse(source)):
        other = row(name)
        if other is not None and (other > own or other == own == LAST):
            found.append(f"{line}: {name}")
    return found


def module_of(path: Path) -> str:
    """Dotted name of a file of the project."""
    return ".".join(path.relative_to(PROJECT_DIR).with_suffix("").parts)


@pytest.mark.parametrize("path", CODE, ids=module_of)
def test_imports_go_one_way(path):
    assert arrows_against_the_order(path.read_text(encoding="utf-8"), module_of(path)) == []


def test_an_arrow_against_the_order_is_found():
    assert arrows_against_the_order("from evaluation import metrics", "crystals.cif") == ["1: evaluation"]
    assert arrows_against_the_order("def f():\n    import models", "generation.loss") == ["2: models"]
    assert arrows_against_the_order("import structure_generator", "scripts.benchmark_generator") == ["1: structure_generator"]
    assert arrows_against_the_order("from scripts import verify_dft", "test") == ["1: scripts"]
    assert arrows_against_the_order("import numpy\nfrom crystals.cif import read_cif", "energetics.hull") == []


def test_the_top_level_holds_the_eight_scripts_and_no_other_python():
    assert {path.stem for path in PROJECT_DIR.glob("*.py")} == {*STAGES, "geo_utils", "models"}


def test_packages_are_not_hidden_by_installed_ones():
    """A package of the project has the name of no module of the standard library and comes from this folder."""
    for name in ORDER:
        assert name not in sys.stdlib_module_names
        assert Path(__import__(name).__file__).is_relative_to(PROJECT_DIR)


@pytest.mark.parametrize("path", [*CODE, *sorted((PROJECT_DIR / "tests").rglob("*.py"))], ids=module_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
            assert node.end_lineno - body[0].lineno < MAX_FUNCTION_LINES, f"{node.name} in line {node.lineno}"
