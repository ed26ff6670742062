"""Refuses another project's packages that Python would take for this one's. Experiments import it before all others.

A script's own folder comes first among those that Python searches, and this project's packages, as an editable install,
come last: a package `utils` that is installed, or on `PYTHONPATH`, comes before ours. Imports nothing of ours.
"""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _refuse_others() -> None:
    for name in ("experiments", "hparams", "models", "utils"):
        spec = find_spec(name)
        places = [spec.origin] if spec and spec.origin else list(spec.submodule_search_locations or ()) if spec else []
        if places and Path(places[0]).resolve().parent != ROOT / name:
            script = Path(sys.argv[0])
            print(
                f"{script.name}: error: Python takes {name} from {places[0]}, which is not this project's: run it as "
                f"`PYTHONPATH={shlex.quote(str(ROOT))} python {shlex.quote(str(script))} …`, or as "
                f"`python -m experiments.{script.stem} …` in {ROOT}",
                file=sys.stderr,
            )
            sys.exit(2)


_refuse_others()
