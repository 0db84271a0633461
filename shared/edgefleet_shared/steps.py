"""The twelve words that a model travels by, in order; logs, journal, API and CLI use them alone."""

from __future__ import annotations

from enum import StrEnum


class Step(StrEnum):
    """One word of a model's way from the publisher's machine to an answer and back."""

    PUBLISH = "publish"
    ACCEPT = "accept"
    TARGET = "target"
    ANNOUNCE = "announce"
    RECEIVE = "receive"
    FETCH = "fetch"
    VERIFY = "verify"
    PREPARE = "prepare"
    PROVE = "prove"
    ACTIVATE = "activate"
    INFER = "infer"
    REPORT = "report"
