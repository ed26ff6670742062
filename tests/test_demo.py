"""What `make demo` does with its commands; itself it takes minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAVING = """
import signal, sys, time
def save(*_):
    time.sleep(1)
    open("saved", "w").close()
    sys.exit(130)
signal.signal(signal.SIGINT, save)
print("training", flush=True)
for _ in range(600):  # a signal just before a sleep is heeded after it
    time.sleep(0.1)
"""


def test_an_interrupted_command_saves_before_the_demo_ends(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SAVING)
    command, env = [sys.executable, "-c", "import demo; demo.run('train.py')"], os.environ | {"PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    demo = subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True, **streams)
    for line in demo.stdout:
        if line == "training\n":
            break
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    _, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (130, "")
    assert (tmp_path / "saved").exists()
