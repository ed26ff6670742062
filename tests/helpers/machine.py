"""One of two machines under torchrun, without the seconds of start: machine.py PORT SCRIPT …, for `Warm.start`.

The agent and its rendezvous are torchrun's own. The agent forks its one process, which then has torch loaded.
"""

from __future__ import annotations

import runpy
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

REPO = Path(__file__).parents[2]


def work(script: str, *words: str) -> None:
    """Be the script."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # the agent's handlers are not for its processes
    sys.argv = [str(REPO / script), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:  # else the agent waits for what this returns
            raise


def main() -> None:
    port, *command = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=1,
        max_restarts=2,
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{port}",
        run_id="job1",
        local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(),
        start_method="fork",
    )
    elastic_launch(config, work)(*command)
    sys.exit()


if __name__ == "__main__":
    main()
