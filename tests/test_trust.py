"""No call in the project's own code can run what a file says, or reaches beyond this machine unasked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SOURCES = sorted(
    file
    for place in ("*.py", "experiments/*.py", "hparams/**/*.py", "models/**/*.py", "utils/**/*.py", "benchmarks/*.py")
    for file in REPO.glob(place)
)

# A call's name, and the keyword that makes it safe. `yaml.dump` with a Dumper of ours writes, it does not read.
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
NEVER = {
    *(
        f"{module}.{name}"
        for module in ("pickle", "cPickle", "dill", "joblib", "marshal")
        for name in ("load", "loads")
    ),
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
        keywords = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        if (name in NEVER and (file.name, name) not in MEANT) or keywords.get("shell"):
            found.append(f"{file.name}:{call.lineno}: {name}")
        # Pillow decodes some formats by starting programs.
        if name == "Image.open" and "formats" not in {k.arg for k in call.keywords}:
            found.append(f"{file.name}:{call.lineno}: {name} without formats=")
        if name in NEEDS and keywords.get(NEEDS[name][0]) is not NEEDS[name][1]:
            found.append(f"{file.name}:{call.lineno}: {name} without {NEEDS[name][0]}={NEEDS[name][1]}")
    return found


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 50
    assert sum(name in NEEDS for file in SOURCES for name, _ in calls(file)) >= 2


def test_nothing_unpickles_and_no_shell_is_asked() -> None:
    assert [problem for file in SOURCES for problem in problems(file)] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "pickle.load(f)",
        "yaml.load(f, L)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_the_look_is_not_blind(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.py").write_text(line)
    assert len(problems(tmp_path / "bad.py")) == 1
