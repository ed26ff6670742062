"""One of two machines under torchrun, without the seconds of start: machine.py PORT SCRIPT …, for `Warm.start`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from together import launch

REPO = Path(__file__).parents[2]


def main() -> None:
    port, script, *words = sys.argv[1:]

    def be_the_script() -> None:
        sys.argv = [str(REPO / script), *words]
        runpy.run_path(sys.argv[0], run_name="__main__")

    failures = launch(be_the_script, port=int(port), min_nodes=2, max_nodes=2, max_restarts=2)
    sys.exit(f"failed: {failures}" if failures else 0)


if __name__ == "__main__":
    main()
