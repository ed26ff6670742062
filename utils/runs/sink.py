"""What shows a run: the interface of visdom, summary page, TensorBoard and Weights & Biases, or of one of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Sink:
    """A view of a run: a subclass shows what it can, called in a thread of its own; the rest it ignores."""

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Numbers after a step, by name; nan and ±inf are possible."""

    def picture(self, step: int | None, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 [3,H,W]: of a step, or None: in place of the last one of its name."""

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """The newest values [n], float, of which each has its place, such as the uses of each code."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table in place of the last one of its name; each row has a value (None: blank) for each column."""

    def text(self, name: str, text: str) -> None:
        """Plain text in place of the last one of its name; line breaks and spaces count."""

    def draw(self) -> None:
        """A step was saved, or the work is done: draw what is not drawn at once."""

    def idle(self) -> None:
        """No call waits: do the work that is left."""

    def close(self) -> None:
        """Nothing comes any more."""
