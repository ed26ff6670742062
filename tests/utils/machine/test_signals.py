"""Which signals are taken, and from whom."""

from __future__ import annotations

import os
import signal
import threading
from unittest.mock import Mock

import pytest

from utils.machine.signals import Signals, heed_parent_alone


def test_under_nohup_a_closed_terminal_stops_nothing(terminal: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.stop is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (signals.save, signals.stop) == (True, None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop is signal.SIGTERM
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_forked_worker_leaves_ctrl_c_to_its_parent_and_ends_on_sigterm() -> None:
    with Signals() as signals:
        worker = os.fork()
        if not worker:
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGTERM
        assert signals.stop is None


def test_a_worker_that_cannot_listen_still_ends_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be waited for without end."""
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
    with pytest.raises(RuntimeError):
        heed_parent_alone(0)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
