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
from pathlib import Path

import numpy as np
import pytest
import torch

from hparams.errors import RunError, UserError
from hparams.script import _as_line, name_nameless_user, run_script
from utils.data.batches import eval_batches

ROOT = Path(__file__).parents[2]
Ended = tuple[int, str]

SCRIPT = """
import os
import signal
import sys
from hparams.cli import parse
from hparams.saved import describe
from hparams.script import run_script
from hparams.settings.stages import VQGANStage

def main():
    stage = parse(VQGANStage, description="About.", example="python train.py --dataset churches")
    if stage.run.seed == 3:
        raise KeyboardInterrupt
    if stage.run.seed == 4:
        raise RuntimeError("a fault of the program")
    if stage.run.seed == 5:
        os.kill(os.getpid(), signal.SIGUSR1)
    print(describe(stage))
    heavy = {"torch", "numpy", "yaml", "PIL", "visdom"} & set(sys.modules)
    assert not heavy, heavy

run_script(main)
"""


def shell(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, str(script), *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_script_prints_settings_without_heavy_imports(tmp_path: Path) -> None:
    done = shell(tmp_path, "--dataset", "churches")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  dataset +churches$", done.stdout, re.MULTILINE)


def test_script_reports_the_users_mistakes_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "logs" / "mine").mkdir(parents=True)
    (tmp_path / "logs" / "mine" / "hparams.yaml").write_text("nf: [1,\n")
    for words, message in (
        (["--dataset", "chruches"], "train.py: error: --dataset: 'chruches' is not one of "),
        (["load_dir", "x"], "train.py: error: 'load_dir' is a flag without its dashes, did you mean --load_dir?\n"),
        (["--log_dir", "mine", "--resume"], "train.py: error: logs/mine/hparams.yaml, line 2: is not valid YAML"),
    ):
        done = shell(tmp_path, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1


def test_script_interrupted_and_faulty(tmp_path: Path) -> None:
    interrupted = shell(tmp_path, "--dataset", "churches", "--seed", "3")
    assert (interrupted.returncode, interrupted.stderr) == (130, "")
    faulty = shell(tmp_path, "--dataset", "churches", "--seed", "4")
    assert faulty.returncode == 1
    assert "RuntimeError: a fault of the program" in faulty.stderr


def test_a_schedulers_sigusr1_ends_no_script(tmp_path: Path) -> None:
    done = shell(tmp_path, "--dataset", "churches", "--seed", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "seed" in done.stdout


@pytest.mark.parametrize(("stdout", "stderr"), [("full", "lost"), ("full", "full"), ("closed", "closed")])
def test_a_script_outlives_its_terminal(stdout: str, stderr: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hparams.script import run_script\n"
        "def main():\n"
        "    for line in range(9999): print(line)\n"
        "    print('a warning', file=sys.stderr, flush=True)\n"
        "    Path('done').touch()\n"
        "run_script(main)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as closed:
        streams = {"full": full, "closed": closed, "lost": subprocess.DEVNULL}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=streams[stdout], stderr=streams[stderr], timeout=60
        )
    assert done.returncode == 0
    assert (tmp_path / "done").exists()


def test_a_terminal_that_lacks_characters_gets_the_others(tmp_path: Path) -> None:
    code = (
        "import sys; from hparams.script import run_script\n"
        "def main():\n"
        "    print('FID 4.07 of caf\u00e9/\\udce9')\n"
        "    print('note: \u00b1', file=sys.stderr)\n"
        "run_script(main)"
    )
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"FID 4.07 of caf\\xe9/\\udce9\n")
    assert done.stderr == b"note: \\xb1\n"


def test_help_needs_no_run_and_no_yaml(tmp_path: Path) -> None:
    done = shell(tmp_path, "--dataset", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: train.py ")


@pytest.fixture
def ended(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """ended(main, words): exit status and stderr of a script in an empty folder."""

    def run(main: Callable[[], None], *words: str) -> Ended:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["script.py", *words])
        try:
            run_script(main)
        except SystemExit as end:
            return int(end.code or 0), capfd.readouterr().err
        except Exception:  # as the interpreter does
            return 1, traceback.format_exc()

    return run


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
    ended: Callable[..., Ended], tmp_path: Path, kind: str, place: str
) -> None:
    folder = Path(place.format(tmp=tmp_path))
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "file").touch()

    def main() -> None:
        FAULTS[kind](folder)

    code, said = ended(main, "--log_dir", "run", "--fake_images_path", "given", f"--out={tmp_path}/typed")
    assert (code, said.count("\n")) == (2 if kind != "OSError" else 1, 1)
    assert said.startswith(f"script.py: error: {folder}")
    if "logs" not in place:  # nor did the user name it
        code, said = ended(main, "--log_dir", "run")
        assert code == 1
        assert f"{kind}: " in said
        assert "Traceback" in said


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [
        (errno.EACCES, 2, "logs/a: Permission denied: give this user access to it, or name another folder\n"),
        (errno.EMFILE, 1, "no more files may be opened here: lower --num_workers, or raise the limit (ulimit -n)\n"),
        (errno.ENOSPC, 1, "logs/a: No space left on device; what was saved before is whole\n"),
    ],
)
def test_an_error_of_the_system_is_told_by_its_kind(
    ended: Callable[..., Ended], number: int, status: int, told: str
) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), "logs/a")

    assert ended(main) == (status, f"script.py: error: {told}")


def test_the_traceback_of_a_line_is_shown_when_asked_for(ended: Callable[..., Ended]) -> None:
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
        ("MASTER_ADDR", ""),
        ("WORLD_SIZE", None),
        ("MASTER_PORT", None),
        ("RANK", "2"),
        ("LOCAL_WORLD_SIZE", "0"),
    ],
)
def test_what_torchrun_would_not_set_is_refused(
    ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    for each, one in (TORCHRUN | {name: value}).items():
        monkeypatch.setenv(each, one) if one is not None else monkeypatch.delenv(each, raising=False)
    code, said = ended(lambda: None)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"script.py: error: the environment variable {name} ")
    assert "unset RANK" in said


def test_run_script_joins_lines(ended: Callable[..., Ended]) -> None:
    def main() -> None:
        raise UserError("first\n  second")

    assert ended(main) == (2, "script.py: error: first second\n")


class Images:
    """Eight images; reading number `deadly` ends the process that does."""

    def __init__(self, deadly: int = -1, number: int = signal.SIGKILL) -> None:
        self.deadly, self.number = deadly, number

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> np.ndarray:
        if i == self.deadly:
            os.kill(os.getpid(), self.number)
        return np.zeros((3, 8, 8), np.uint8)

    def source(self, i: int) -> str:
        return str(i)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_the_death_of_a_worker_is_named(number: int) -> None:
    """It comes as one of several errors, by what the worker was doing."""
    with pytest.raises((RuntimeError, RunError)) as death:
        list(eval_batches(Images(5, number), 2, num_workers=1))
    line = _as_line(death.value)
    assert line is not None
    assert re.search(r"process \d+ ?.*, which read images, (died|is killed by signal|exited unexpectedly)", line), line
    assert "lower --num_workers or --batch_size" in line
    assert re.search("go(es)? on", line)


def test_a_worker_killed_by_a_signal_is_named_with_it() -> None:
    error = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that ...")
    assert str(_as_line(error)).startswith("process 4711, which read images, is killed by signal: Bus error;")


def test_too_little_memory_names_the_flags() -> None:
    errors = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")]
    errors += [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")]
    with pytest.raises(RuntimeError) as failure:
        torch.empty(10**16)
    for error in (*errors, failure.value):
        assert _as_line(error) == "out of memory: lower --batch_size, or use --amp"
    no_worker = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    assert _as_line(no_worker) == "out of memory: lower --num_workers or --batch_size"
    assert _as_line(RuntimeError("shapes differ")) is None


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "-u"),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\n…\nRuntimeError: can't start new thread"
            ),
            "-u",
        ),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "-n"),
        (RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"), "-n"),
    ],
)
def test_too_few_processes_or_files_name_the_flag_and_the_limit(error: Exception, limit: str) -> None:
    line = str(_as_line(error))
    assert "lower --num_workers" in line
    assert f"(ulimit {limit})" in line


@pytest.mark.slow
def test_workers_that_cannot_all_start_leave_one_line_and_none_behind(tmp_path: Path) -> None:
    """Files that may be open are for the first ones only."""
    code = (
        "import resource, numpy as np\n"
        "from hparams.script import run_script\n"
        "from utils.data.batches import eval_batches\n"
        "class Grey(list):\n"
        "    def source(self, i): return str(i)\n"
        "def main():\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "    next(eval_batches(Grey([np.zeros((3, 2, 2), np.uint8)] * 4), 1, 60))\n"
        "run_script(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "lower --num_workers, or raise the limit (ulimit -n)" in done.stderr


@pytest.mark.parametrize(
    ("limit", "workers", "told"),
    [
        ("-n 32", 2, "96 files must be open at once, the limit is 32: raise it (ulimit -n)"),
        ("-n 90", 2, "the limit is 90: use --num_workers 1, or raise it (ulimit -n)"),
        ("-n 96", 2, ""),
        ("-Sn 32", 2, ""),  # which a process may raise by itself
    ],
)
def test_too_few_open_files_are_refused_before_anything_starts(
    tmp_path: Path, limit: str, workers: int, told: str
) -> None:
    """torch's threads and workers would print tracebacks without end, and hang."""
    command = f"ulimit {limit} && exec {sys.executable} {ROOT}/train_vqgan.py --dataset toy_churches --dry_run"
    command += f" --num_workers {workers}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == ((2, 1) if told else (0, 0)), done.stderr
    assert done.stderr.startswith(f"train_vqgan.py: error: --num_workers {workers}: " if told else "")
    assert told in done.stderr


# Three arrays of 4 MiB at a time: page faults of the 20 rounds after the first 20.
PAGE_FAULTS = """
import resource
import numpy as np
from hparams.script import keep_freed_memory
if {keep}:
    keep_freed_memory()
faults = []
for _ in range(40):
    arrays = [np.ones(2**19) for _ in range(3)]
    del arrays
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[19])
"""


def page_faults(*, keep: bool) -> int:
    code = PAGE_FAULTS.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="this is not glibc"
)
def test_pages_are_not_cleared_anew() -> None:
    assert page_faults(keep=False) > 10_000
    assert page_faults(keep=True) < 20


VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where getpass looks


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_user_whom_the_system_does_not_know_is_named_by_number(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> None:
        raise error(uid)

    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    name_nameless_user()
    assert getpass.getuser() == str(os.getuid())


def test_a_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    name_nameless_user()
    assert getpass.getuser() == "ada"
