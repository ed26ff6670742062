"""Users without a name."""

from __future__ import annotations

import getpass
import os
import pwd

import pytest

from hparams.user import name_nameless_user

VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where getpass looks


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_user_whom_the_system_does_not_know_is_named_by_number(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> None:
        raise error(uid)

    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    name_nameless_user()
    assert getpass.getuser() == str(os.getuid())


def test_a_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    name_nameless_user()
    assert getpass.getuser() == "ada"
