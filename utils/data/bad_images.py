"""Images that cannot be read: counted, listed, and allowed up to a share of the data.

`utils.data.batches` puts others in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

from hparams.errors import UserError
from utils.machine.distributed import Ranks
from utils.machine.files import whole_file

# Takes what a batch met, name of the image → what is wrong with it, and the number of images of the data set.
Report = Callable[[Mapping[str, str], int], None]
STANDS_IN = "another image stands in for it"


class SharedReport:
    """The `Report` of each process that shares some work: what one of them meets, `report` is told on each."""

    def __init__(self, report: Report, ranks: Ranks) -> None:
        self._report, self._ranks = report, ranks
        self._waiting: list[tuple[dict[str, str], int]] = []

    def __call__(self, found: Mapping[str, str], images: int) -> None:
        """Enter what a batch of this process met, in a data set of `images`; others learn it at the next `exchange`."""
        if self._ranks.count == 1:
            self._report(found, images)
        else:
            self._waiting.append((dict(found), images))

    def exchange(self) -> None:
        """Tell each other what was met; all processes call it together, every now and then."""
        if not any(self._ranks.agree(len(self._waiting))):
            return
        waiting, self._waiting = self._waiting, []
        for found, images in chain.from_iterable(self._ranks.gather_objects(waiting)):
            self._report(found, images)


class BadImages:
    """The images of one run that could not be read. It may read several data sets, which are told apart by their sizes.

    Args:
        file: lists them, a line each: name, what is wrong, size of the data set.
        share: of a data set, the most that may be unreadable.
        say: takes a line for each, which says what becomes of the image `until_replaced`.
        keep: go on from what the file lists, else remove it.
        writes: whether this process is the one of several alike that writes the file.
    """

    def __init__(
        self, file: Path, share: float, say: Callable[[str], None], *, keep: bool, writes: bool = True,
        until_replaced: str = STANDS_IN,
    ) -> None:
        self._file, self._share, self._say, self._writes = file, share, say, writes
        self._until_replaced = until_replaced
        self._found: dict[str, tuple[str, ...]] = {}  # name → what is wrong, and of how many images it is one
        if keep and file.exists():
            lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            self._found = {name: tuple(rest) for name, *rest in (line.split("\t") for line in lines) if rest}
        elif writes:
            file.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._found)

    def report(self, found: Mapping[str, str], images: int) -> None:
        """Enter unreadable images of a data set of `images`, each once. UserError: there are too many by now."""
        of = f"of {images} images"
        lines = {" ".join(name.split()): (" ".join(reason.split()), of) for name, reason in found.items()}
        new = {name: line for name, line in lines.items() if name not in self._found}
        if not new:
            return
        self._found |= new
        listed = "".join("\t".join((name, *line)) + "\n" for name, line in self._found.items())
        if self._writes:
            try:
                with whole_file(self._file) as out:
                    out.write(listed.encode("utf-8", "surrogateescape"))
            except OSError as error:
                self._say(f"WARNING: {self._file} not written ({error.strerror})")
        for number, (reason, _) in enumerate(new.values(), len(self) - len(new) + 1):
            self._say(f"WARNING: {reason}; until then {self._until_replaced} ({number} so far)")
        # A list that an earlier version left does not say of which data set: those count for each.
        count = sum(line[1:] in ((), (of,)) for line in self._found.values())
        if count > self._share * images:
            limit = f"more than --max_bad_images {self._share:g} allows (all are in {self._file})"
            raise UserError(f"{count} {of} cannot be read, {limit}: {next(iter(new.values()))[0]}")
