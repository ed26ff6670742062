"""How scripts start, and what they say and return when something goes wrong."""

from __future__ import annotations

import ctypes
import errno
import getpass
import os
import pwd
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hparams.errors import UserError
from hparams.script import name_nameless_user, run_script
from utils.data.batches import eval_batches

ROOT = Path(__file__).parents[2]
Ended = Callable[..., tuple[int, str]]


@pytest.fixture
def ended(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ended:
    """ended(main, words): exit status and stderr of a script in an empty folder."""

    def run(main: Callable[[], object], *words: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["script.py", *words])
        try:
            run_script(main)
        except SystemExit as end:
            return int(end.code or 0), capfd.readouterr().err
        except Exception:  # as the interpreter does
            return 1, traceback.format_exc()

    return run


def raises(error: BaseException) -> None:
    raise error


def script(*body: str, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run lines as the main of a script."""
    first = ("import resource, sys, numpy as np", "from pathlib import Path", "from hparams.script import *")
    code = "\n".join([*first, "def main():", *(f"    {line}" for line in body), "run_script(main)"])
    return subprocess.run([sys.executable, "-c", code], timeout=60, check=False, **options)


def test_settings_need_no_heavy_imports() -> None:
    code = "import sys, hparams.cli; print({'torch', 'numpy', 'yaml', 'PIL', 'visdom'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_a_script_that_is_interrupted_or_faulty(ended: Ended) -> None:
    assert ended(lambda: raises(KeyboardInterrupt())) == (130, "")
    code, said = ended(lambda: raises(RuntimeError("a fault of the program")))
    assert code == 1
    assert "RuntimeError: a fault of the program" in said


def test_a_schedulers_sigusr1_ends_no_script(ended: Ended) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert ended(lambda: None) == (0, "")
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN


@pytest.mark.parametrize(("stdout", "stderr"), [("full", "lost"), ("full", "full"), ("closed", "closed")])
def test_a_script_outlives_its_terminal(stdout: str, stderr: str, tmp_path: Path) -> None:
    body = ("print('line\\n' * 9999)", "print('a warning', file=sys.stderr, flush=True)", "Path('done').touch()")
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as closed:
        streams = {"full": full, "closed": closed, "lost": subprocess.DEVNULL}
        done = script(*body, cwd=tmp_path, stdout=streams[stdout], stderr=streams[stderr])
    assert done.returncode == 0
    assert (tmp_path / "done").exists()


def test_a_terminal_that_lacks_characters_gets_the_others() -> None:
    body = ("print('FID 4.07 of caf\u00e9/\\udce9')", "print('note: \u00b1', file=sys.stderr)")
    done = script(*body, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"FID 4.07 of caf\\xe9/\\udce9\n")
    assert done.stderr == b"note: \\xb1\n"


FAULTS: dict[str, Callable[[Path], object]] = {
    "FileExistsError": lambda folder: folder.mkdir(),
    "FileNotFoundError": lambda folder: (folder / "no/such").read_bytes(),
    "IsADirectoryError": lambda folder: folder.read_bytes(),
    "NotADirectoryError": lambda folder: (folder / "file/below").read_bytes(),
    "OSError": lambda folder: folder.rename(folder / "within"),  # of two names, and of a number that no list holds
}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("place", ["logs/run", "given", "{tmp}/typed"])
def test_errors_about_paths_are_the_users_where_the_user_named_them(
    ended: Ended, tmp_path: Path, kind: str, place: str
) -> None:
    folder = Path(place.format(tmp=tmp_path))
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "file").touch()
    main = partial(FAULTS[kind], folder)
    code, said = ended(main, "--log_dir", "run", "--fake_images_path", "given", f"--out={tmp_path}/typed")
    assert (code, said.count("\n")) == (2 if kind != "OSError" else 1, 1)
    assert said.startswith(f"script.py: error: {folder}")
    if "logs" not in place:  # nor did the user name it
        code, said = ended(main, "--log_dir", "run")
        assert code == 1
        assert f"{kind}: " in said
        assert "Traceback" in said


MEMORY = "out of memory: lower --batch_size, or use --amp"
PROCESSES = "no more processes or threads may be started here: lower --num_workers, or raise the limit (ulimit -u)"
FILES = "no more files may be opened here: lower --num_workers, or raise the limit (ulimit -n)"


def of_system(number: int) -> OSError:
    return OSError(number, os.strerror(number), "logs/a")


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("first\n  second"), 2, "first second"),
        (of_system(errno.EACCES), 2, "logs/a: Permission denied: give this user access to it, or name another folder"),
        (of_system(errno.ENOSPC), 1, "logs/a: No space left on device; what was saved before is whole"),
        (of_system(errno.EMFILE), 1, FILES),
        (RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"), 1, FILES),
        (of_system(errno.EAGAIN), 1, PROCESSES),
        (RuntimeError("Caught RuntimeError in worker 0.\n…\nRuntimeError: can't start new thread"), 1, PROCESSES),
        (of_system(errno.ENOMEM), 1, "out of memory: lower --num_workers or --batch_size"),
        (MemoryError(), 1, MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), 1, MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 1, MEMORY),
    ],
)
def test_what_can_be_mended_is_told_in_one_line(ended: Ended, error: Exception, status: int, told: str) -> None:
    assert ended(lambda: raises(error)) == (status, f"script.py: error: {told}\n")


def test_torchs_own_words_of_too_little_memory(ended: Ended) -> None:
    assert ended(lambda: torch.empty(10**16)) == (1, f"script.py: error: {MEMORY}\n")


def test_the_traceback_of_a_line_is_shown_when_asked_for(ended: Ended) -> None:
    def main() -> None:
        try:
            {}["the cause"]
        except KeyError:
            raise UserError("--nf: too few") from None

    assert ended(main) == ended(main, "--traceback", "--no_traceback") == (2, "script.py: error: --nf: too few\n")
    code, said = ended(main, "--traceback")
    assert code == 2
    assert said.startswith("Traceback (most recent call last)")
    assert "KeyError: 'the cause'" in said
    assert said.endswith("\nscript.py: error: --nf: too few\n")


TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in sorted(TORCHRUN.keys() - {"MASTER_ADDR"}) for value in ("", "one", "-1")),
        *{"MASTER_ADDR": "", "WORLD_SIZE": None, "MASTER_PORT": None, "RANK": "2", "LOCAL_WORLD_SIZE": "0"}.items(),
    ],
)
def test_what_torchrun_would_not_set_is_refused(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    for each, one in (TORCHRUN | {name: value}).items():
        monkeypatch.setenv(each, one) if one is not None else monkeypatch.delenv(each, raising=False)
    code, said = ended(lambda: None)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"script.py: error: the environment variable {name} ")
    assert "unset RANK" in said


class Images(list[np.ndarray]):
    """Reading the sixth one ends the process that does, by a signal."""

    end = signal.SIGKILL

    def __getitem__(self, i: Any) -> Any:
        if i == 5:
            os.kill(os.getpid(), self.end)
        return super().__getitem__(i)

    def source(self, i: int) -> str:
        return str(i)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_the_death_of_a_worker_is_named(ended: Ended, number: signal.Signals) -> None:
    """It comes as one of several errors, by what the worker was doing."""
    images = Images([np.zeros((3, 8, 8), np.uint8)] * 8)
    images.end = number
    code, line = ended(lambda: list(eval_batches(images, 2, num_workers=1)))
    died = r"process \d+ ?.*, which read images, (died|is killed by signal|exited unexpectedly)"
    assert re.search(rf"script.py: error: {died}.* lower --num_workers or --batch_size.* go(es)? on", line), line
    assert code == 1


def test_a_worker_killed_by_a_signal_is_named_with_it(ended: Ended) -> None:
    error = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that ...")
    assert "process 4711, which read images, is killed by signal: Bus error;" in ended(lambda: raises(error))[1]


@pytest.mark.slow
def test_workers_that_cannot_all_start_leave_one_line_and_none_behind() -> None:
    """Files that may be open are for the first ones only."""
    done = script(
        "from utils.data.batches import eval_batches",
        "class Grey(list):",
        "    def source(self, i): return str(i)",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
        "next(eval_batches(Grey([np.zeros((3, 2, 2), np.uint8)] * 4), 1, 60))",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "lower --num_workers, or raise the limit (ulimit -n)" in done.stderr


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("-n 32", "96 files must be open at once, the limit is 32: raise it (ulimit -n)"),
        ("-n 90", "the limit is 90: use --num_workers 1, or raise it (ulimit -n)"),
        ("-n 96", ""),
        ("-Sn 32", ""),  # which a process may raise by itself
    ],
)
def test_too_few_open_files_are_refused_before_anything_starts(tmp_path: Path, limit: str, told: str) -> None:
    """torch's threads and workers would print tracebacks without end, and hang."""
    command = f"{sys.executable} {ROOT}/train_vqgan.py --dataset toy_churches --dry_run --num_workers 2"
    words = ["bash", "-c", f"ulimit {limit} && exec {command}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == ((2, 1) if told else (0, 0)), done.stderr
    assert done.stderr.startswith("train_vqgan.py: error: --num_workers 2: " if told else "")
    assert told in done.stderr


# Three arrays of 4 MiB at a time: page faults of the 20 rounds after the first 20.
PAGE_FAULTS = """
import resource
import sys
import numpy as np
from hparams.script import keep_freed_memory
if sys.argv[1:]:
    keep_freed_memory()
faults = []
for _ in range(40):
    arrays = [np.ones(2**19) for _ in range(3)]
    del arrays
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[19])
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="this is not glibc"
)
def test_pages_are_not_cleared_anew() -> None:
    command = [sys.executable, "-c", PAGE_FAULTS]
    assert int(subprocess.check_output(command)) > 10_000
    assert int(subprocess.check_output([*command, "keep"])) < 20


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_user_whom_the_system_does_not_know_is_named_by_number(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    name_nameless_user()
    assert getpass.getuser() == "ada"
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):  # where getpass looks
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: raises(error(uid)))
    name_nameless_user()
    assert getpass.getuser() == str(os.getuid())
