"""Who runs this process. Imports no torch."""

from __future__ import annotations

import getpass
import os


def name_nameless_user() -> None:
    """Let a user whom the system does not know, as `docker run --user` makes them, have their number for a name.

    PyTorch names folders of its own after the user, and fails where there is no name.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError: from Python 3.13 on
        os.environ["LOGNAME"] = str(os.getuid())
