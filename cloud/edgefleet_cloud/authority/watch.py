"""Notices that `edgefleet-cloud ca`, or a restored backup, has changed the authorities on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from edgefleet_cloud.authority.issuing import DeviceCa, load_issuers

_log = logging.getLogger(__name__)


class AuthorityWatch:
    """Has the broker take changed authorities up, and only then issues by them.

    Args:
        ca: The authority of the running fleet manager.
        keys_dir: Where it lies.
        take_up: Brings certificates, authorities and revocation lists to the broker.
    """

    def __init__(self, ca: DeviceCa, keys_dir: Path, take_up: Callable[[], None]) -> None:
        self._ca = ca
        self._keys_dir = keys_dir
        self._take_up = take_up

    def look(self) -> None:
        """Look once; what fails is tried again at the next look.

        Raises:
            UnavailableError: The authorities cannot be read.
        """
        found = load_issuers(self._keys_dir)
        if [each.certificate for each in found] == [each.certificate for each in self._ca.issuers]:
            return
        self._take_up()
        self._ca.replace(found)
        _log.info("%s authorities are trusted now; the newest is %s", len(found), found[0].digest)
