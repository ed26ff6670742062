"""Which data set, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from hparams.fields import Group, setting

FolderDataset = Literal["ffhq", "custom"]  # of one part, the last images of which are held out; they can be packed
_data = partial(setting, subject="data")


@dataclass(frozen=True)
class DataSettings(Group, title="data"):
    """A field that says where one data set alone lies begins with that one's name."""

    dataset: Literal["churches", "bedrooms", FolderDataset, "toy_churches"] = _data(
        None, "data set; picks the preset", none_means="that of the loaded run, else required"
    )
    custom_dataset_path: str | None = _data(None, "folder of images, for --dataset custom", "folder")
    datasets_file: str = _data("datasets.yaml", "file that says where each data set lies", "file")
    toy_images: int = _data(10_000, "scenes of toy_churches; a tenth more, at least 64, validate", "images")
