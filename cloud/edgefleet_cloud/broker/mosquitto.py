"""mosquitto's configuration, written from the same facts as the code that talks to it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from edgefleet_cloud.broker.acl import managers
from edgefleet_shared import topics

# The default queue of 1000 messages silently drops what an offline consumer has not taken.
_LIMITS = """\
# The default of 1000 silently drops what an absent fleet manager has not taken.
max_queued_messages 0
max_inflight_messages 1000
max_packet_size 1048576
# No persistent_client_expiration, and no client of ours asks for one: 2.0's list of sessions that
# expire gets corrupt when one of them is taken over or thrown out, which ends the broker. Revoking
# a device, or taking it out of service, ends its session.
"""


class MtlsPaths(NamedTuple):
    """Where a broker with mutual TLS finds its files."""

    ca: str = "/etc/edgefleet/broker/ca.crt"
    cert: str = "/etc/edgefleet/broker/server.crt"
    key: str = "/etc/edgefleet/broker/server.key"
    crl: str = "/etc/edgefleet/broker/crl.pem"
    acl: str = "/etc/edgefleet/broker/acl.txt"
    data: str = "/var/lib/mosquitto"


STANDARD_PATHS = MtlsPaths()


def executable() -> str | None:
    """Return the path of mosquitto, or None where there is none.

    Debian puts it in /usr/sbin, which an ordinary user's PATH lacks.
    """
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def version(path: str) -> str:
    """Return the version that a mosquitto says it has, for example `2.0.11`, or `unknown`."""
    said = subprocess.run([path, "-h"], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"version (\S+)", said.stdout + said.stderr)
    return found.group(1) if found else "unknown"


def plain_config(port: int, data: Path) -> str:
    """Return the configuration of a broker without TLS: this machine only, which it believes.

    Args:
        port: TCP port on 127.0.0.1.
        data: Folder of its persistence file; it must exist.
    """
    return f"""\
# Written by edgefleet-cloud at each start; edit cloud.toml instead.
listener {port} 127.0.0.1
allow_anonymous true
{_as_ourselves()}persistence true
persistence_location {data}/
autosave_interval 30
log_dest stderr
log_type error
log_type warning
{_LIMITS}"""


def embedded_config(paths: MtlsPaths, host: str, port: int) -> str:
    """Return the embedded broker's configuration, with mutual TLS.

    Args:
        paths: Where its files lie.
        host: Address to listen on.
        port: TCP port.
    """
    return f"""\
# Written by edgefleet-cloud at each start; edit cloud.toml instead.
listener {port} {host}
{_rules(paths)}{_as_ourselves()}log_dest stderr
log_type error
log_type warning
{_LIMITS}"""


def mtls_config(paths: MtlsPaths = STANDARD_PATHS, port: int = 8883) -> str:
    """Return the configuration of a broker that knows each client by its certificate.

    Args:
        paths: Where its files lie.
        port: TCP port on all interfaces.
    """
    return f"""\
# Printed by: edgefleet-cloud broker-config --kind mosquitto --mtls
listener {port}
{_rules(paths)}{_LIMITS}"""


def acl(count: int = 1) -> str:
    """Return the access list: a device reaches its own topics, the fleet manager all.

    Args:
        count: How many fleet-manager certificates there are.
    """
    lines = ["# Printed by: edgefleet-cloud broker-config --kind mosquitto --mtls --acl"]
    for name in managers(count):
        lines += [f"user {name}", f"topic readwrite {topics.ROOT}/#", ""]
    lines += [f"pattern {access} {pattern}" for access, pattern in topics.acl_patterns()]
    return "\n".join(lines) + "\n"


def _rules(paths: MtlsPaths) -> str:
    return f"""\
cafile {paths.ca}
certfile {paths.cert}
keyfile {paths.key}
# kill -HUP reads it again. Once it has expired nobody gets in: the fleet manager renews it daily.
crlfile {paths.crl}
require_certificate true
# The certificate's common name is the user, and the user is the client id: without the second line
# one device's certificate could take another device's session.
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {paths.acl}
persistence true
persistence_location {paths.data}/
autosave_interval 30
"""


def _as_ourselves() -> str:
    """As root, mosquitto would become a user who cannot write, or read a key, where we can."""
    return f"user {pwd.getpwuid(0).pw_name}\n" if os.geteuid() == 0 else ""
