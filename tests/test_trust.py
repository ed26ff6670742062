"""No call in the project's own code can run what a file says, or reaches beyond this machine unasked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PACKAGES = ("experiments", "hparams", "models", "utils", "benchmarks")
SOURCES = sorted([*REPO.glob("*.py"), *(file for package in PACKAGES for file in REPO.glob(f"{package}/**/*.py"))])

# A call's name, and the keyword that makes it safe. `yaml.dump` with a Dumper of ours writes, it does not read.
NEEDS = dict.fromkeys(("np.load", "numpy.load"), ("allow_pickle", False)) | {"torch.load": ("weights_only", True)}
NEVER = {
    *(f"{module}.load{s}" for module in ("pickle", "cPickle", "dill", "joblib", "marshal") for s in ("", "s")),
    *("pickle.Unpickler", "pd.read_pickle", "shelve.open", "eval", "exec", "os.system", "os.popen"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "torch.hub.load", "load_state_dict_from_url"),
    *("torch.hub.load_state_dict_from_url", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.jit.load"),
}
# DINOv2's network is its authors' code, for whoever asks for --features dinov2. It is that of their main branch: no
# release of it is named by a source that this project depends on. Results name the code that was used.
MEANT = {("features.py", "torch.hub.load")}


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def problems(file: Path) -> list[str]:
    found = []
    for name, call in calls(file):
        keywords = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else None for k in call.keywords}
        needed, value = NEEDS.get(name, (None, None))
        if (
            ((name in NEVER or keywords.get("shell")) and (file.name, name) not in MEANT)
            or (name == "Image.open" and "formats" not in keywords)  # Pillow decodes some formats by starting programs
            or (needed and keywords.get(needed) is not value)
        ):
            found.append(f"{file.name}:{call.lineno}: {ast.unparse(call)}")
    return found


def test_nothing_unpickles_and_no_shell_is_asked() -> None:
    assert sum(name in NEEDS for file in SOURCES for name, _ in calls(file)) >= 2
    assert [problem for file in SOURCES for problem in problems(file)] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "pickle.load(f)",
        "yaml.load(f, L)", "subprocess.run(c, shell=True)", "Image.open(f)",
    ],
)  # fmt: skip
def test_the_look_is_not_blind(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.py").write_text(line)
    assert len(problems(tmp_path / "bad.py")) == 1
