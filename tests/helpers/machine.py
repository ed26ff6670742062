"""torchrun; and one of two machines under it, without the seconds of start: machine.py PORT SCRIPT …"""

from __future__ import annotations

import os
import runpy
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

REPO = Path(__file__).parents[2]


def launch(work: Callable[[], None], logs: Path | None = None, **options: Any) -> dict[int, ProcessFailure]:
    """Do `work()` in processes of torchrun's own agent; those that failed, by rank.

    logs: folder for what they say on stderr. options: of the `LaunchConfig`.
    """
    specs = DefaultLogsSpecs(str(logs), redirects=Std.ERR) if logs else DefaultLogsSpecs()
    defaults: dict[str, Any] = {
        "min_nodes": 1, "max_nodes": 1, "max_restarts": 0, "nproc_per_node": 1, "rdzv_endpoint": "127.0.0.1:0",
        "rdzv_backend": "c10d", "run_id": "job1", "local_addr": "127.0.0.1", "start_method": "fork",
    }  # fmt: skip
    try:
        elastic_launch(LaunchConfig(**defaults | options, logs_specs=specs), _as_a_script)(work)
    except ChildFailedError as error:
        return error.failures
    return {}


def _as_a_script(work: Callable[[], None]) -> None:
    """End as a script would: with an exit status, and a traceback on stderr."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # the agent's handlers are not for its processes
    try:
        work()
    except SystemExit as end:
        if end.code:  # else the agent waits for what this returns
            raise
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def torchrun(folder: Path, processes: int, restarts: int, command: str, port: int) -> subprocess.Popen[bytes]:
    """Start a command under torchrun in a working directory; its words go to `torchrun.txt` there."""
    launcher = f"-m torch.distributed.run --nproc_per_node={processes} --max-restarts={restarts} --master_port={port}"
    words, env = [sys.executable, *shlex.split(f"{launcher} {REPO}/{command}")], {"OMP_NUM_THREADS": "1"}
    with (folder / "torchrun.txt").open("ab") as out:
        return subprocess.Popen(words, cwd=folder, env=os.environ | env, stdout=out, stderr=subprocess.STDOUT)


def main() -> None:
    port, script, *words = sys.argv[1:]

    def be_the_script() -> None:
        sys.argv = [str(REPO / script), *words]
        runpy.run_path(sys.argv[0], run_name="__main__")

    failures = launch(be_the_script, rdzv_endpoint=f"127.0.0.1:{port}", min_nodes=2, max_nodes=2, max_restarts=2)
    sys.exit(f"failed: {failures}" if failures else 0)


if __name__ == "__main__":
    main()
