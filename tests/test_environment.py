"""The project says what it needs in several files: they must agree with each other and with what is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "lmdb": "python-lmdb", "matplotlib": "matplotlib-base"}
PACKAGES = ("experiments", "hparams", "models", "utils")
README, MAKEFILE, PINS = ((ROOT / name).read_text() for name in ("README.md", "Makefile", "requirements.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDED = map(Requirement, PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"])
DIRECT = {canonicalize_name(requirement.name): requirement for requirement in NEEDED}


def pins(python: str | None = None) -> dict[str, str]:
    """Release of every package in requirements.txt that applies to this machine, or to another `python` on it."""
    environment = {"python_full_version": python, "python_version": python.rpartition(".")[0]} if python else None
    found = {}
    for pin in map(Requirement, re.findall(r"^[\w.-]+==[^\\\n]+", PINS, re.MULTILINE)):
        if pin.marker is None or pin.marker.evaluate(environment):
            assert canonicalize_name(pin.name) not in found
            found[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("python", ["3.10.13", "3.11.7", "3.12.1", "3.13.0", "3.14.0"])
def test_pins_fulfil_pyproject(python: str) -> None:
    pinned = pins(python)
    assert [name for name, needed in DIRECT.items() if not needed.specifier.contains(pinned[name])] == []


def test_readme_and_makefile_name_the_same_pythons() -> None:
    oldest, too_new = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["project"]["requires-python"]).groups()
    assert f"(3, {oldest}) <= sys.version_info < (3, {too_new})" in MAKEFILE
    assert all(f"3.{oldest} to 3.{int(too_new) - 1}" in text for text in (README, MAKEFILE))


def test_every_pin_has_a_hash_and_no_address() -> None:
    entries = re.split(r"(?m)^(?=[a-z])", PINS)[1:]
    assert len(entries) > 50
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in PINS


def test_installed_releases_are_the_pinned_ones() -> None:
    pinned = pins()
    assert {name: Version(version(name)).public for name in DIRECT} == {name: pinned[name] for name in DIRECT}


def test_conda_file_says_the_same() -> None:
    *conda, pip_part = yaml.safe_load((ROOT / "requirements.yml").read_text(encoding="utf-8"))["dependencies"]
    named = dict(line.split("=", 1) for line in conda if "=" in line)
    pinned = pins(named.pop("python") + ".1")
    named |= dict(line.split("==") for line in pip_part["pip"])
    assert named == {CONDA_NAMES.get(name, name): pinned[name] for name in DIRECT}


def test_every_package_folder_is_installed(tmp_path: Path) -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert {folder.replace("/", ".") for folder in folders} <= set(listed)

    code = "import importlib, sys; [print(importlib.import_module(name).__path__[0]) for name in sys.argv[1:]]"
    command = [sys.executable, "-c", code, *PACKAGES]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [Path(line) for line in run.stdout.splitlines()] == [ROOT / name for name in PACKAGES]


@pytest.mark.parametrize("file", ["utils/__init__.py", "models.py", "hparams/fields.py"])
def test_another_package_of_our_name_that_is_installed_is_refused_with_what_helps(tmp_path: Path, file: str) -> None:
    """Installed in an environment that has all of this one, too."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv/lib").glob("python3*/site-packages")
    (site / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (site / file).parent.mkdir(exist_ok=True)
    (site / file).write_text("raise SystemExit('of another project')\n")
    env, name = {**os.environ, "PYTHONPATH": ""}, Path(file).parts[0].removesuffix(".py")

    def run(*words: str | Path, cwd: Path = tmp_path, **env_too: str) -> subprocess.CompletedProcess[str]:
        command = [tmp_path / "venv/bin/python", *words, "--help"]
        return subprocess.run(command, cwd=cwd, env=env | env_too, capture_output=True, text=True)

    for script in sorted(ROOT.glob("experiments/[!_]*.py"))[:: 1 if file.startswith("utils") else -20]:
        done = run(script)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith(f"{script.name}: error: Python takes {name} from {site}")
    path = re.search("`PYTHONPATH=(.*?) python ", done.stderr)[1]
    module = re.search("`python -m (.*?) …`", done.stderr)[1]
    for helped in (run(script, PYTHONPATH=path), run("-m", module, cwd=ROOT)):
        assert helped.stdout.startswith("usage: "), helped
        assert helped.returncode == 0


def test_a_folder_of_our_name_that_holds_no_module_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/churches.th").touch()
    command = [sys.executable, ROOT / "experiments/calc_FID.py", "--help"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_file_touches_the_module_search_path() -> None:
    sources = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")] + list(ROOT.glob("*.py"))
    assert sources
    assert [path for path in sources if "sys.path" in path.read_text(encoding="utf-8")] == []


def test_build_constraints_are_said_once_more_for_uv() -> None:
    lines = (ROOT / "build-constraints.txt").read_text(encoding="utf-8").split()
    assert lines == PROJECT["tool"]["uv"]["build-constraint-dependencies"]
