"""Whatever order keys come and go in: the server takes it, and a device walks all of it at once."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.ngclient import Updater

from edgefleet_cloud.trust import chain, online, rules
from edgefleet_cloud.trust.key_folder import OnlineKeys
from edgefleet_provisioning import repository
from edgefleet_provisioning.ceremony import Ceremony
from edgefleet_provisioning.key_changes import Changes
from edgefleet_provisioning.present import read_present
from edgefleet_shared.bundle import BundleFetcher
from edgefleet_shared.errors import InvalidInputError

NOW = datetime.now(UTC)
ROLES = ("root", "targets", "publisher/digits", "director", "snapshot", "timestamp")


class Fleet:
    """Owners, a server's rules, and every key there has ever been; all in memory."""

    def __init__(self) -> None:
        make = CryptoSigner.generate_ecdsa
        self.root, self.targets = [make() for _ in range(3)], [make() for _ in range(3)]
        self.publisher, self.director, audit = make(), make(), make()
        self.snapshot, self.timestamp = make(), make()
        self.files = repository.initial(
            repository.RepositoryKeys(
                self.root, 2, self.targets, 2, {"digits": self.publisher}, self.snapshot,
                self.timestamp, self.director.public_key, audit.public_key,
            ),
            NOW,
        )  # fmt: skip
        self.pinned = self.files["1.root.json"]
        signers = [*self.root, *self.targets, self.publisher, self.snapshot, self.timestamp]
        self.signers = {signer.public_key.keyid: signer for signer in [*signers, self.director]}

    def make(self) -> CryptoSigner:
        """Return one more key."""
        made = CryptoSigner.generate_ecdsa()
        self.signers[made.public_key.keyid] = made
        return made

    def change(self, steps) -> None:
        """Plan steps, sign them by the keys that the ceremony asks for, send them to the server."""
        changes = Changes(read_present(self.files, self.pinned), NOW)
        for role, kind in steps:
            keyids = changes.keyids(role)
            if kind == "renew":
                if role in {"root", "targets", "publisher/digits"}:
                    changes.renew(role)
                continue
            if kind in {"replace", "remove"}:
                changes.remove(role, keyids[0])
            if kind in {"replace", "add"}:
                changes.add(role, self.make().public_key)
        new = changes.finish()
        if not new:
            return
        ceremony = Ceremony.begin("f", "t", read_present(self.files, self.pinned), new, NOW)
        while due := ceremony.due():
            keyid = min(due)
            for name in {n.file for n in ceremony.needs() if keyid in n.missing}:
                payload = ceremony.new[name].signed_bytes
                ceremony.attach(keyid, name, self.signers[keyid].sign(payload).signature)
        again = Ceremony.decode(ceremony.encode(), "f", self.pinned)  # as on another machine
        assert all(need.met for need in again.needs())
        self.accept(again.files())

    def accept(self, incoming) -> None:
        """Do what the fleet manager does with signed files."""
        now = chain.read(self.files)
        accepted = rules.check_incoming(now, incoming, None, NOW)
        roles = accepted.root.roles
        keys = OnlineKeys(
            *(self.signers[roles[role].keyids[0]] for role in ("snapshot", "timestamp")), None
        )
        signed = online.sign_next(now, accepted.versions, keys, NOW, snapshot=True)
        self.files = dict(chain.read({**self.files, **incoming, **signed}).files)

    def device(self) -> Updater:
        """Return a TUF client that has just walked everything from the first root."""
        with tempfile.TemporaryDirectory() as cache:
            updater = Updater(
                cache, "https://f/", fetcher=BundleFetcher(self.files), bootstrap=self.pinned
            )
            updater.refresh()
            updater.get_targetinfo("models/digits/1.0.0/manifest.json")
            return updater


step = st.tuples(st.sampled_from(ROLES), st.sampled_from(["replace", "add", "remove", "renew"]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(step, max_size=4), min_size=1, max_size=5))
def test_any_order_of_changes_is_believed(history):
    """A step either leaves a role too few keys and is refused whole, or everybody believes it."""
    fleet = Fleet()
    for steps in history:
        before = dict(fleet.files)
        try:
            fleet.change(steps)
        except InvalidInputError as error:
            assert error.code in {"threshold", "no_key"}
            assert fleet.files == before
        except IndexError:  # a role has no key left to take within this step
            assert fleet.files == before
    fleet.device()


def test_one_signature_less_is_not_enough():
    """Each file that a big step makes is refused with one signature less than its threshold."""
    fleet = Fleet()
    present = read_present(fleet.files, fleet.pinned)
    changes = Changes(present, NOW)
    for role in ROLES:
        changes.remove(role, changes.keyids(role)[0])
        changes.add(role, fleet.make().public_key)
    ceremony = Ceremony.begin("f", "t", present, changes.finish(), NOW)
    while due := ceremony.due():
        keyid = min(due)
        for name in {n.file for n in ceremony.needs() if keyid in n.missing}:
            payload = ceremony.new[name].signed_bytes
            ceremony.attach(keyid, name, fleet.signers[keyid].sign(payload).signature)
    whole = ceremony.files()
    for name, metadata in ceremony.new.items():
        for need in (n for n in ceremony.needs() if n.file == name):
            signed = sorted(need.signed)  # may be more than enough: an old key signs for both roots
            for first in range(len(signed)):
                rest = [signed[(first + n) % len(signed)] for n in range(need.threshold - 1)]
                kept = dict(metadata.signatures)
                for keyid in need.signed - set(rest):
                    del metadata.signatures[keyid]
                with pytest.raises(Exception, match="not signed as its delegation demands"):
                    fleet.accept(ceremony.files())
                metadata.signatures = kept
    assert ceremony.files() == whole
    fleet.accept(whole)
    fleet.device()
