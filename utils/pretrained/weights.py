"""Files of pretrained weights: where the libraries that know them keep them, downloaded at their first use."""

from __future__ import annotations

from pathlib import Path

import torch

from hparams.errors import UserError


class NoWeightsError(UserError):
    """A file of weights is not on disk and cannot be downloaded."""


def pretrained_file(url: str, *, what: str, instead: str) -> Path:
    """A file in torch's cache of downloads, fetched if it is not there and checked against the hash in its name.

    Only the file: the libraries' own loaders would unpickle it. Its name is the last part of its address. `what` it is,
    and what else the user can do `instead`, are for the message.

    Raises:
        NoWeightsError: it cannot be had; the line says which file, from which address, goes where.
    """
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.exists():
        hash_in_name = torch.hub.HASH_REGEX.search(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_in_name.group(1) if hash_in_name else None)
        except (OSError, RuntimeError) as error:  # no network, or not the file that its name promises
            raise NoWeightsError(
                f"{what} cannot be downloaded ({error}): put {name} from {url} at {path}, or {instead}"
            ) from None
    return path
