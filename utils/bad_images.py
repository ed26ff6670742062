"""Images that cannot be read: others stand in for them, and they are counted and listed, up to a share of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hparams.errors import UserError
from utils.files import whole_file

# Takes what a batch met, name of the image → what is wrong with it, and the number of images of the data set.
Report = Callable[[Mapping[str, str], int], None]


def remembering(met: dict[str, str], report: Report | None) -> Report:
    """`report`, which enters what it is told into `met` too; None stands for one that accepts no unreadable image."""

    def remember(found: Mapping[str, str], images: int) -> None:
        met.update(found)
        if report is None:
            raise UserError(next(iter(found.values())))
        report(found, images)

    return remember


class BadImages:
    """The images of one run that could not be read.

    Args:
        file: where they are listed, a line each.
        share: of the data set, the most that may be unreadable.
        say: takes a line for each.
        keep: go on from what the file lists, else remove it.
    """

    def __init__(self, file: Path, share: float, say: Callable[[str], None], *, keep: bool) -> None:
        self._file = file
        self._share = share
        self._say = say
        self._found: dict[str, str] = {}
        if keep and file.exists():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            self._found = {name: reason for name, tab, reason in (line.partition("\t") for line in lines) if tab}
        else:
            file.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._found)

    def report(self, found: Mapping[str, str], images: int) -> None:
        """Enter unreadable images of a data set of `images`; those known already are passed over.

        Raises:
            UserError: there are too many by now.
        """
        new = {_one_line(name): _one_line(reason) for name, reason in found.items()}
        new = {name: reason for name, reason in new.items() if name not in self._found}
        if not new:
            return
        self._found |= new
        try:
            with whole_file(self._file) as out:
                lines = (f"{name}\t{reason}\n" for name, reason in self._found.items())
                out.writelines(line.encode("utf-8", "surrogateescape") for line in lines)
        except OSError as error:
            self._say(f"WARNING: {self._file} not written ({error.strerror})")
        for reason in new.values():
            self._say(f"WARNING: {reason}; until then another image stands in for it ({len(self)} so far)")
        if len(self) > self._share * images:
            raise UserError(
                f"{len(self)} of {images} images cannot be read, more than --max_bad_images {self._share:g} allows "
                f"(all are in {self._file}): {next(iter(new.values()))}"
            )


def _one_line(text: str) -> str:
    return " ".join(text.split())
