"""The tree names no package registry: where packages come from is the installer's setting."""

from __future__ import annotations

from tests.house.tree import ROOT, files

# Written in halves, so that this file does not name them either.
HOSTS = [
    first + second
    for first, second in [
        ("py", "pi.org"), ("python", "hosted.org"), ("registry.npm", "js.org"),
        ("deb.deb", "ian.org"), ("archive.ubu", "ntu.com"), ("crates", ".io"),
        ("conda.ana", "conda.org"), ("proxy.go", "lang.org"),
    ]
]  # fmt: skip


def test_no_registry_host_is_named():
    """No file that is or could be committed names the host of a package registry."""
    named = [
        f"{path}: {host}"
        for path in files()
        for text in [(ROOT / path).read_bytes().lower()]
        for host in HOSTS
        if host.encode() in text
    ]
    assert named == []


def test_no_lock_file_is_committed():
    """uv.lock names a host, so it stays out; constraints.txt stands for it."""
    assert [path for path in files() if path.name == "uv.lock"] == []
