"""E: keys and roles; security.md section 8 (3), 42 to 47 but 45, which is the headline test."""

from __future__ import annotations

import copy
import time
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Targets

from edgefleet_shared import bundle
from edgefleet_shared.messages import DESIRED_MAX_BYTES
from edgefleet_shared.package import publisher_role, target_path
from tests.adversarial.agent_process import serving
from tests.agent.world import World

BOUND_S = 5.0
"""For a whole refusal by a real agentd, told and reported, on a machine that does other things."""


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def victim(world):
    """A device whose agentd serves digits 1.0.0."""
    victim = serving(world)
    yield victim
    victim.close()


def root_of(world, version, *, keys, signers) -> bytes:
    """Return a root of that version whose own role has these keys, signed by those."""
    root = copy.deepcopy(world.root)
    root.version = version
    root.roles["root"].keyids = []
    for key in keys:
        root.add_key(key.public_key, "root")
    metadata = Metadata(root)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def test_42_a_root_that_does_not_follow_is_no_root(world, victim):
    """N+2 without N+1, N+1 by the new keys alone, N+1 by the old alone: none of them is taken."""
    two, old, new = world.publish("2.0.0"), world.keys["root"], CryptoSigner.generate_ecdsa()
    good = dict(world.files)
    # It would name a stranger's key for timestamp and snapshot: that such a root counts is seen.
    stranger = world.keys["stranger"]
    for role in ("timestamp", "snapshot"):
        world.root.roles[role].keyids = []
        world.root.add_key(stranger.public_key, role)
    world.release(timestamp="stranger", snapshot="stranger")
    attacks = {
        "3.root.json": (root_of(world, 3, keys=[old], signers=[old]), "metadata_signature"),
        "2.root.json": (root_of(world, 2, keys=[new], signers=[new]), "metadata_signature"),
        "2.root.json ": (root_of(world, 2, keys=[new], signers=[old]), "metadata_signature"),
    }
    for name, (data, code) in attacks.items():
        files = {**world.files, name.strip(): data}
        victim.refuses(world.desired(world.assignment(victim.identity, two), files=files), code)
        assert victim.floors().root == 1
    victim.takes(world.desired(world.assignment(victim.identity, two), files=good))
    victim.serves(two)


def test_43_three_hundred_rotations_are_walked_at_once(world, victim):
    """A device that slept through 300 roots of two keys of three, each with a new key, goes on."""
    two, keys = world.publish("2.0.0"), [world.keys["root"]]
    for version in range(2, 302):
        old, new = keys, CryptoSigner.generate_ecdsa()
        keys = [*keys, new][-3:]
        world.root.roles["root"].threshold = min(2, len(keys))
        signers = {id(key): key for key in (*old, *keys)}.values()
        world.files[f"{version}.root.json"] = root_of(world, version, keys=keys, signers=signers)
    document = world.assign(victim.identity, two)
    assert 256 * 1024 < len(document) < DESIRED_MAX_BYTES
    victim.takes(document)
    victim.serves(two)
    assert victim.floors().root == 301
    newest = Metadata[Root].from_bytes((victim.state / "trust/metadata/root.json").read_bytes())
    assert newest.signed.version == 301


def test_44_an_old_directors_assignment_dies_with_its_delegation(world, victim):
    """Signed before, unexpired, and refused: targets name another director by now."""
    two = world.publish("2.0.0")
    envelope = world.assignment(victim.identity, two)
    new = CryptoSigner.generate_ecdsa()
    world.targets.revoke_key(world.key("director").keyid, "director")
    world.keys["director"] = new
    world.targets.add_key(new.public_key, "director")
    world.targets.version += 1
    world.release()
    victim.refuses(world.desired(envelope), "signature")
    victim.takes(world.assign(victim.identity, two))
    victim.serves(two)


def delegate(world, *names: str, paths: str = "models/digits/*/*") -> Delegations:
    """Return delegations to roles of the publisher's key, none of which ends a search."""
    key = world.key("publisher")
    roles = {name: DelegatedRole(name, [key.keyid], 1, False, [paths]) for name in names}
    return Delegations({key.keyid: key}, roles)


def sign_role(world, name: str, role: Targets) -> None:
    """Put a role of the publisher's key into the repository; `release` makes it current."""
    world.files[f"{role.version}.{name}.json"] = world.sign(role, "publisher")
    world.snapshot.meta[f"{name}.json"] = MetaFile(role.version)


def in_a_circle(world, target):
    """The publisher delegates to a, a to b, b to the publisher and to a."""
    roles = {"a": ("b",), "b": (publisher_role("digits"), "a")}
    for name, to in roles.items():
        later = world.targets.expires
        sign_role(world, name, Targets(expires=later, delegations=delegate(world, *to)))
    world.publishers["digits"].delegations = delegate(world, "a")


def forty_deep(world, target):
    """Each of forty roles delegates to the next; the last one has the version."""
    later = world.targets.expires
    for depth in range(1, 41):
        role = Targets(expires=later, delegations=delegate(world, f"d{depth + 1}"))
        if depth == 40:
            role = Targets(expires=later, targets={target.path: target})
        sign_role(world, f"d{depth}", role)
    world.publishers["digits"].delegations = delegate(world, "d1")


def two_deep(world, target):
    """The publisher hands the version to a role of its own making."""
    sign_role(world, "x", Targets(expires=world.targets.expires, targets={target.path: target}))
    world.publishers["digits"].delegations = delegate(world, "x")


def ten_thousand(world, target):
    """The publisher delegates the path to 10 000 roles, none of which exists."""
    names = [f"r{n}" for n in range(10_000)]
    world.publishers["digits"].delegations = delegate(world, *names)


def two_thousand_that_fit(world, target):
    """As many as a file may hold, each listed in the snapshot and served by nobody."""
    names = [f"r{n}" for n in range(2000)]
    world.publishers["digits"].delegations = delegate(world, *names)
    world.snapshot.meta |= {f"{name}.json": MetaFile(1) for name in names}


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        (in_a_circle, "not_in_catalog"),
        (forty_deep, "not_in_catalog"),
        (two_deep, "not_in_catalog"),
        (ten_thousand, "metadata_too_large"),
        (two_thousand_that_fit, "metadata_missing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_46_delegations_without_end_are_refused_in_bounded_time(world, victim, shape, code):
    """In circles, 10 000 wide or 40 deep, by a publisher's stolen key: refused, and soon."""
    two = world.publish("2.0.0")
    publisher = world.publishers["digits"]
    target = publisher.targets.pop(target_path("digits", "2.0.0"))
    shape(world, target)
    publisher.version += 1
    world.release()
    document = world.assign(victim.identity, two)
    begun = time.monotonic()
    victim.refuses(document, code)
    assert time.monotonic() - begun < BOUND_S
    assert len(bundle.encode(world.files)) < bundle.MAX_BYTES


def test_47_an_expired_root_is_only_a_step_on_the_way(world, victim):
    """The root that the device knows has expired; the bundle holds newer ones, and it goes on."""
    two, lasting = world.publish("2.0.0"), world.root.expires
    world.root.expires = datetime.now(UTC) - timedelta(days=1)
    for version in (2, 3):
        world.root.version = version
        world.files[f"{version}.root.json"] = world.sign(world.root, "root")
    victim.refuses(world.assign(victim.identity, two), "metadata_expired")
    world.root.version, world.root.expires = 4, lasting
    world.files["4.root.json"] = world.sign(world.root, "root")
    victim.takes(world.assign(victim.identity, two))
    victim.serves(two)
    assert victim.floors().root == 4
