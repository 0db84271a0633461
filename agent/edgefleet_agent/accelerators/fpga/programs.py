"""Runs a vendor's command-line program, with a limit of time and without a shell."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

from edgefleet_agent.accelerators.fpga.states import ProgramError

SHORT_S: Final = 10.0


def find(names: list[str]) -> str:
    """Return the first of the programs that is on PATH, or ''."""
    return next((found for name in names if (found := shutil.which(name))), "")


def run(command: list[str], timeout_s: float) -> str:
    """Return what a program prints, both streams together.

    Raises:
        ProgramError: It cannot be started, fails, or does not end in time.
    """
    name = command[0].rpartition("/")[2]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramError(f"{name} has not ended after {timeout_s:g} s.") from error
    except OSError as error:
        raise ProgramError(f"{name} cannot be started: {error.strerror or error}.") from error
    text = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode:
        raise ProgramError(f"{name} failed ({done.returncode}): {text[-300:] or 'it says nothing'}")
    return text
