"""The structure: imports point downwards, and a method is named where it is declared and where it is run."""

import ast
from pathlib import Path
from typing import Dict, Iterator, Set

from helpers.processes import ROOT, run

from noisin.methods import METHODS

# A module or package of src/noisin, or a package beside it, from the bottom up: each imports from those before it.
ROOMS = (
    *("graphs", "initializers", "pretrained", "system", "tables", "data"),
    *("native", "noise", "cells", "regularisers", "methods"),
    *(
        "config",
        "figures",
        "model",
        "objective",
        "particles",
        "evaluation",
        "robustness",
        "sampling",
        "export",
        "optimizers",
    ),
    *("runs", "training", "search", "tuning", "commands", "__main__", "benchmarks", "experiments"),
)


def name_of(path: Path) -> str:
    """The module of a file, as an import writes it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("src", "__init__"))


MODULES: Dict[str, ast.Module] = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("src/noisin", "experiments", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
FACE = "noisin"  # names all that is public, and is imported before anything else


def room(module: str) -> str:
    """The room that a module stands in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "noisin" else parts[0]


def imported(module: str) -> Set[str]:
    """Our modules that a module imports anywhere in it, also for its annotations alone."""

    def names() -> Iterator[str]:
        for node in ast.walk(MODULES[module]):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name if name in MODULES else str(node.module) for name in whole)

    return {name for name in names() if name in MODULES} - {FACE, module}


IMPORTS = {module: imported(module) for module in MODULES if module != FACE}


def test_every_room_has_its_place():
    assert {room(module) for module in IMPORTS} == set(ROOMS)


def test_imports_point_downwards():
    upward = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in sorted(others)
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert upward == []


def test_no_modules_import_one_another():
    left = dict(IMPORTS)
    while True:
        done = [module for module, others in left.items() if not others & set(left)]
        if not done:
            break
        for module in done:
            del left[module]
    assert left == {}, "each of these imports another one of them, directly or not"


def test_methods_are_named_where_they_are_declared_and_run():
    found = []
    for module, tree in MODULES.items():
        if module in ("noisin.methods", "experiments.catalogue"):
            continue
        for node in ast.walk(tree):
            constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            # "none" and "noisin" are also a word and this package: only to compare with them tells methods apart.
            names = set(METHODS) if isinstance(node, ast.Compare) else set(METHODS) - {"none", "noisin"}
            if isinstance(node, (ast.Compare, ast.Constant)) and constants & names:
                found.append(f"{module}, line {node.lineno}: {sorted(constants & names)}")
    assert found == [], "ask the method instead, or name it as NONE, DROPOUT, NOISIN or NOISIN_STAR"


def test_no_ignored_file_is_tracked():
    assert run(["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]).stdout == "", "git rm --cached these"
