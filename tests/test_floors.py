"""Imports run downwards only: a package imports those of lower floors, and no imports go in a circle."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("hparams", "models"),
    ("utils.machine",),
    ("utils.data",),
    ("utils.runs",),
    ("utils.pretrained", "utils.reporting"),
    ("utils.training", "utils.sampling"),
    ("utils.metrics", "train_vqgan", "train_sampler"),
    ("experiments", "benchmarks", "demo"),
)
FLOOR = {package: number for number, packages in enumerate(FLOORS, start=1) for package in packages}
SCRIPTS = ("train_vqgan", "train_sampler", "demo")


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("*.py")]
    for package in ("hparams", "models", "utils", "experiments", "benchmarks"):
        files += (ROOT / package).rglob("*.py")
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files)
    return dict(zip(names, files, strict=True))


def imports(file: Path, known: set[str]) -> set[str]:
    """The project's modules that a file imports anywhere, also late or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            found |= {name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names}
    return found & known


def floor(module: str) -> int:
    """`utils` itself imports nothing, and stands below its packages."""
    package = next((p for p in FLOOR if module == p or module.startswith(f"{p}.")), None)
    assert package or module == "utils", f"{module} stands on no floor"
    return FLOOR[package] if package else 1


@cache
def graph() -> dict[str, set[str]]:
    files = modules()
    return {module: imports(file, set(files)) for module, file in files.items()}


def test_no_import_goes_up() -> None:
    assert len(FLOORS) <= 8
    up = [(m, n) for m, others in graph().items() for n in others if floor(n) > floor(m)]
    assert up == []


def test_no_imports_go_in_a_circle() -> None:
    # A package's __init__ that names what others may import stands above its modules, not below.
    files = graph()
    TopologicalSorter(files).prepare()


def test_packages_of_one_floor_do_not_import_each_other() -> None:
    def package(module: str) -> str:
        return next(p for p in FLOOR if module == p or module.startswith(f"{p}."))

    across = [
        (m, n)
        for m, others in graph().items()
        for n in others
        if m != "utils" and n != "utils" and floor(m) == floor(n) and package(m) != package(n)
    ]
    assert across == []


def test_nothing_imports_a_script() -> None:
    arrows = [(m, n) for m, others in graph().items() for n in others]
    assert [(m, n) for m, n in arrows if n in SCRIPTS] == []


def test_a_package_says_what_each_of_its_modules_is() -> None:
    for package in [path for name in ("hparams", "models", "utils") for path in (ROOT / name).rglob("__init__.py")]:
        said = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or ""
        inside = [path for path in package.parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
        assert [path.name for path in inside if path != package and path.stem not in said] == [], package
