"""What every test stands on: a clean environment, and Debian's programs asked for by name."""

from __future__ import annotations

import os
import shutil

import pytest

try:
    from hypothesis import settings
except ImportError:  # the isolated run of a device's packages may do without
    settings = None

try:
    from paho.mqtt.client import Client as PahoClient
except ImportError:  # the cloud alone has another client
    PahoClient = None

PAHO = []
"""Clients of paho's that tests have made and that are not yet put away."""
REQUIRE = "EDGEFLEET_REQUIRE_PROGRAMS"
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])

PROGRAMS = {
    "mosquitto": ("mosquitto",),
    "faketime": ("faketime",),
    "strace": ("strace",),
    "curl": ("curl",),
    "softhsm2": ("softhsm2-util", "pkcs11-tool"),
    "swtpm": ("swtpm", "tpm2_ptool"),
    "verilator": ("verilator", "g++", "make"),
    "dockerd": ("dockerd", "cc"),
}
"""Markers, and what must be on PATH for a test that bears one; `.ci/run` installs the packages."""

if settings and os.environ.get("CI"):
    settings.register_profile("ci", derandomize=True)
    settings.load_profile("ci")


if PahoClient:
    make_paho = PahoClient.__init__

    def note_paho(self, *args, **kwargs):
        """Make a client as paho does, and note it."""
        make_paho(self, *args, **kwargs)
        PAHO.append(self)

    PahoClient.__init__ = note_paho


def missing(marker: str) -> list[str]:
    """Return the programs that a marker asks for and this machine lacks."""
    return [name for name in PROGRAMS[marker] if not shutil.which(name, path=PATH)]


def pytest_configure(config):
    """Take every EDGEFLEET_ setting of the caller's shell away, for the tests and their children.

    Where programs are demanded (`EDGEFLEET_REQUIRE_PROGRAMS=1`, as in CI) and missing, stop here.
    """
    config.edgefleet_requires = os.environ.get(REQUIRE) == "1"
    lacking = [name for marker in PROGRAMS for name in missing(marker)]
    if config.edgefleet_requires and lacking:
        pytest.exit(f"{REQUIRE}=1, and PATH lacks {', '.join(lacking)}.", returncode=4)
    # REQUIRE stays, for the processes that pytest shares the tests among.
    for name in [n for n in os.environ if n.startswith("EDGEFLEET_") and n != REQUIRE]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def paho_is_put_away():
    """Close what paho's clients leave open: it does so when the collector comes, in any order.

    A client of the Azure SDK is part of a cycle, so its two sockets for waking up may be found
    before it, and fail whatever test runs then.
    """
    yield
    for client in [c for c in PAHO if c._sock is None and not (c._thread and c._thread.is_alive())]:
        client._reset_sockets()
        PAHO.remove(client)


@pytest.fixture(scope="session")
def dockerd():
    """A real dockerd, with nothing in it and nothing left of it; root alone can start one."""
    if os.geteuid():
        pytest.skip("not root: needs dockerd")
    from tests.dockerd import Dockerd

    one = Dockerd()
    yield one
    one.close()


def pytest_collection_modifyitems(items):
    """Skip what lacks its program."""
    lacking = {marker: names for marker in PROGRAMS if (names := missing(marker))}
    for item in items:
        for marker, names in lacking.items():
            if item.get_closest_marker(marker):
                reason = f"{', '.join(names)} not on PATH: needs {marker}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Turn the skip of a test that bears such a marker into a failure where they are demanded."""
    report = yield
    if (
        report.skipped
        and item.config.edgefleet_requires
        and any(item.get_closest_marker(marker) for marker in PROGRAMS)
    ):
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE}=1 and this was skipped: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter):
    """Name what was not run for want of a program."""
    skipped = [
        report.nodeid
        for report in terminalreporter.stats.get("skipped", [])
        if "not on PATH: needs" in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests need a program and did not run:")
        for nodeid in skipped:
            terminalreporter.write_line(f"  {nodeid}")
