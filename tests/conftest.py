"""What every test stands on: a clean environment, and mosquitto asked for by name."""

from __future__ import annotations

import os
import shutil

import pytest

try:
    from hypothesis import settings
except ImportError:  # the isolated run of a device's packages may do without
    settings = None

REQUIRE = "EDGEFLEET_REQUIRE_MOSQUITTO"
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])

if settings and os.environ.get("CI"):
    settings.register_profile("ci", derandomize=True)
    settings.load_profile("ci")


def pytest_configure(config):
    """Take every EDGEFLEET_ setting of the caller's shell away, for the tests and their children.

    Where mosquitto is demanded (`EDGEFLEET_REQUIRE_MOSQUITTO=1`, as in CI) and missing, stop here.
    """
    config.edgefleet_requires_mosquitto = os.environ.get(REQUIRE) == "1"
    if config.edgefleet_requires_mosquitto and not shutil.which("mosquitto", path=PATH):
        pytest.exit(f"{REQUIRE}=1, and there is no mosquitto on PATH.", returncode=4)
    # REQUIRE stays, for the processes that pytest shares the tests among.
    for name in [n for n in os.environ if n.startswith("EDGEFLEET_") and n != REQUIRE]:
        del os.environ[name]


def pytest_collection_modifyitems(items):
    """Keep a file's tests in one process, and all of one fleet's; skip `mosquitto` without one."""
    for item in items:
        group = "fleet" if "world" in item.fixturenames and "e2e" in item.nodeid else item.path
        item.add_marker(pytest.mark.xdist_group(str(group)))
    if shutil.which("mosquitto", path=PATH):
        return
    for item in items:
        if item.get_closest_marker("mosquitto"):
            item.add_marker(pytest.mark.skip(reason="mosquitto is not on PATH"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Turn the skip of a mosquitto test into a failure where mosquitto is demanded."""
    report = yield
    if (
        report.skipped
        and item.config.edgefleet_requires_mosquitto
        and item.get_closest_marker("mosquitto")
    ):
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE}=1 and this was skipped: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter):
    """Name what was not run for want of mosquitto."""
    skipped = [
        report.nodeid
        for report in terminalreporter.stats.get("skipped", [])
        if "mosquitto" in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests need mosquitto and did not run:")
        for nodeid in skipped:
            terminalreporter.write_line(f"  {nodeid}")
