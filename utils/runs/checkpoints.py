"""Model files and training states: written whole, loaded strictly, never unpickled into code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hparams.errors import UserError
from utils.machine.files import make_folder, sha256_of, sync, whole_file
from utils.runs.run_folder import RunFolder

Names = tuple[str, ...]
Tensors = Mapping[str, Tensor]
READ_OVER = ("perceptual.",)  # in published checkpoints; here the perceptual network comes from its own weights
LOGSIGMA = ("ae.generator.logsigma.",)  # a head that only the likelihood estimate uses; older checkpoints lack it
HISTORIES = ("loss_history", "Lt_history", "Lt_count")  # the published code enters losses that are not finite, too


def save_step(folder: RunFolder, kind: str, step: int, models: Mapping[bool, nn.Module], state: dict[str, Any]) -> None:
    """Write a step: model files by whether they are the average, then the training state, which names them.

    OSError: the disk does not take it; earlier steps are as they were.
    """
    make_folder(folder.saved_models)
    mark = folder.saving_mark(kind, step)
    mark.touch()
    sync(folder.saved_models)
    siblings = {}
    for ema, model in models.items():
        file = folder.model_file(kind, step, ema=ema)
        save_file(file, {name: value.contiguous() for name, value in model.state_dict().items()})
        siblings[file.name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    save_file(folder.state_file(kind, step), {**state, "step": step, "siblings": siblings})
    mark.unlink(missing_ok=True)  # another rank may have saved the same step before an error ended both


def load_state(folder: RunFolder, kind: str, step: int) -> dict[str, Any]:
    """The training state of a step. UserError: it, or one of the files it names, is missing, damaged or not ours."""
    path = folder.state_file(kind, step)
    state = load_file(path)
    siblings = state.get("siblings") if isinstance(state, dict) else None
    own = {folder.model_file(kind, step, ema=ema).name for ema in (False, True)}
    if (
        not isinstance(siblings, dict)
        or not siblings.keys() <= own  # a path to somewhere else is not even looked at
        or not all(isinstance(noted, dict) and noted.keys() == {"size", "sha256"} for noted in siblings.values())
    ):
        raise UserError(f"{path} is not a training state of this project")
    for name, expected in siblings.items():
        file = folder.saved_models / name
        if not file.exists():
            raise UserError(f"{file} is missing, and {path.name} needs it: restore it, or delete {path.name}")
        if file.stat().st_size != expected["size"] or sha256_of(file) != expected["sha256"]:
            raise UserError(f"{file} is damaged (checksum differs): restore it, or delete {path.name}")
    return state


def noted_autoencoder(state_file: Path) -> str | None:
    """The checksum of the autoencoder file that a prior's training state notes, or None. Reads no weights."""
    with suppress(Exception):  # the bytes of a damaged file lead the unpickler anywhere
        noted = torch.load(state_file, map_location="cpu", weights_only=True, mmap=True).get("autoencoder")
        return noted if isinstance(noted, str) else None
    return None


def load_file(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU. UserError: missing, damaged, or more than tensors and plain containers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickles, which are refused or fine
            content = torch.load(path, map_location="cpu", weights_only=True)
        # PyTorch writes checksums, and does not look at them.
        broken = zipfile.ZipFile(path).testzip() if zipfile.is_zipfile(path) else None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than tensors and plain values, or is damaged: it is not loaded") from None
    except Exception as error:  # the bytes of a damaged file lead the unpickler anywhere
        told = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read ({told}): it is damaged or no checkpoint") from None
    if broken:
        raise UserError(f"{path} is damaged (checksum of {broken!r} differs): restore it, or use another step")
    return content


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """A model file: names to tensors. UserError: as of `load_file`, or the content is no state dict."""
    content = load_file(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is no model file: it should hold names and tensors only")
    return content


def load_into(
    module: nn.Module, state_dict: Tensors, source: Path, *, may_lack: Names = (), prefix: str = "", beside: Names = ()
) -> None:
    """Load strictly: the same names and shapes, but for `READ_OVER`. Names under `may_lack` may stay as they are.

    Where the module is a part of what the file holds, its names there begin with `prefix`, and those under `beside`
    are other parts. All names are the file's. UserError: names are missing or not known, shapes differ, or values are
    not finite; the line lists them.
    """
    given = {name: value for name, value in state_dict.items() if not name.startswith((*READ_OVER, *beside))}
    own = {prefix + name: value for name, value in module.state_dict().items()}
    shapes = {name: (list(given[name].shape), list(own[name].shape)) for name in own if name in given}
    wrong = {
        "shapes differ": [f"{name} is {a} there and {b} here" for name, (a, b) in shapes.items() if a != b],
        "missing": [name for name in own if name not in given and not name.startswith(may_lack)],
        "unknown": [name for name in given if name not in own],
    }
    if told := "; ".join(f"{what}: {_listed(names)}" for what, names in wrong.items() if names):
        raise UserError(f"{source} does not fit these settings ({told}): check the flags of the model's sizes")
    module.load_state_dict(part_of(given, prefix), strict=False)
    loaded = {prefix + name: value for name, value in module.state_dict().items()}
    # In the module's own types, in which a value of the file may overflow.
    require_finite({name: value for name, value in loaded.items() if name in given}, source)


def require_finite(
    content: Any, source: Path | str, advice: str = "use the file of an earlier step, or a fresh copy of this one"
) -> None:
    """UserError, listing where, if tensors in nested dicts and lists hold NaN or ±inf; `HISTORIES` are passed over."""
    floats = ((name, value) for name, value in _tensors(content) if value.is_floating_point())
    finite = {name: value.isfinite().all() for name, value in floats if not name.endswith(HISTORIES)}
    together = torch.stack(list(finite.values())).tolist() if finite else []  # waits for the device once
    if broken := [name for name, good in zip(finite, together, strict=True) if not good]:
        told = f"holds values that are not finite (in {_listed(broken)})"
        raise UserError(f"{source} {told}: its training had diverged, or it is damaged; {advice}")


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts and lists, with where they are: `absorbing.state.3.exp_avg`."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, (Mapping, list)):
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from _tensors(value, f"{name}.{key}".lstrip("."))


def part_of(state_dict: Tensors, prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def save_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `load_file` reads, whole or not at all."""
    with whole_file(path) as out:
        try:
            torch.save(content, out)
        except RuntimeError as error:  # how torch reports that the file took no more
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _listed(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
