"""A job in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import a_job
from utils.runs.job import Job


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """Its run folder lies in `logs/` of the test's own folder, which becomes the working folder."""
    monkeypatch.chdir(tmp_path)
    with a_job() as job:
        yield job
