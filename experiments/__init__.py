"""Experiments on trained models; each file is a script.

Before anything else, this refuses another project's packages that Python would take for ours. A script's own folder
comes first among those that Python searches, and this project's packages, as an editable install, come last: a package
`utils` that is installed, or on `PYTHONPATH`, comes before ours.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def _in_the_way(name: str, folders: Iterable[str]) -> Path | None:
    """Of folders without an __init__.py, which Python joins to one package, the first that holds a module like ours.

    Others, such as a folder of weights called `models`, do no harm: our modules are found beside them.
    """
    ours = {path.stem for path in (_ROOT / name).iterdir() if path.suffix in ("", ".py") and path.name[0] != "_"}
    for folder in map(Path, folders):
        if folder.is_dir() and any(path.stem in ours and path.suffix in ("", ".py") for path in folder.iterdir()):
            return folder
    return None


for _name in ("experiments", "hparams", "models", "utils"):
    if _spec := find_spec(_name):
        _place = Path(_spec.origin) if _spec.origin else _in_the_way(_name, _spec.submodule_search_locations or ())
        if _place and not _place.resolve().is_relative_to(_ROOT / _name):
            _script = Path(sys.argv[0])
            print(
                f"{_script.name}: error: Python takes {_name} from {_place}, which is not this project's: run it as "
                f"`PYTHONPATH={shlex.quote(str(_ROOT))} python {shlex.quote(str(_script))} …`, or as "
                f"`python -m experiments.{_script.stem} …` in {_ROOT}",
                file=sys.stderr,
            )
            sys.exit(2)
