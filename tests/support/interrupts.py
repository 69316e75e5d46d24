"""Ctrl-C at a known moment of the work on many models."""

import signal
import time

import pytest

from jaxmixed import missingness
from jaxmixed.schedule import check_interrupt


def interrupt_in_block(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fits of the block with this number, from 1, be interrupted from the keyboard."""
    calls, original = [], missingness.ResponseFits.fit

    def interrupted(self, Y):
        calls.append(1)
        if len(calls) != number:
            return original(self, Y)
        signal.raise_signal(signal.SIGINT)
        while True:  # as in the search, between two compiled programs
            check_interrupt()
            time.sleep(0.01)

    monkeypatch.setattr(missingness.ResponseFits, "fit", interrupted)
