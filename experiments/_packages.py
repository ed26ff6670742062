"""Refuses another project's packages that Python would take for this one's. Experiments import it before all others.

A script's own folder comes first among those that Python searches, and this project's packages, as an editable install,
come last: a package `utils` that is installed, or on `PYTHONPATH`, comes before ours. Imports nothing of ours.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _refuse_others() -> None:
    for name in ("experiments", "hparams", "models", "utils"):
        spec = find_spec(name)
        if spec is None:
            continue
        place = Path(spec.origin) if spec.origin else _in_the_way(name, spec.submodule_search_locations or ())
        if place and not place.resolve().is_relative_to(ROOT / name):
            script = Path(sys.argv[0])
            print(
                f"{script.name}: error: Python takes {name} from {place}, which is not this project's: run it as "
                f"`PYTHONPATH={shlex.quote(str(ROOT))} python {shlex.quote(str(script))} …`, or as "
                f"`python -m experiments.{script.stem} …` in {ROOT}",
                file=sys.stderr,
            )
            sys.exit(2)


def _in_the_way(name: str, folders: Iterable[str]) -> Path | None:
    """Of folders without an __init__.py, which Python joins to one package, the first that holds a module like ours.

    Others, such as a folder of weights called `models`, do no harm: our modules are found beside them.
    """
    ours = {path.stem for path in (ROOT / name).iterdir() if path.suffix in ("", ".py") and path.name[0] != "_"}
    for folder in map(Path, folders):
        if folder.is_dir() and any(path.stem in ours and path.suffix in ("", ".py") for path in folder.iterdir()):
            return folder
    return None


_refuse_others()
