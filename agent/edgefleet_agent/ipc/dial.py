"""How a container is reached: a folder on the host, and connections that the gateway hands out.

agentd makes the folder and gives its descriptor to the gateway with `Prove` and `Load`; what the
keeper learns is written into it. Only `socket` below it is mounted into the container:

- `socket/oip.sock`: the Unix socket that the container's server listens on; or
- `address`: `HOST:PORT` where it listens on TCP, on a network of its own;
- `gone`: there once the container has ended and nobody starts it again; holds an error code and,
  after a space, a sentence.

A worker may not open a socket. It sends `ASK` on a SOCK_SEQPACKET socket of its own to the gateway
and gets `HERE` with a connected descriptor, `NOT_YET`, or `GONE` with the text of `gone`.
"""

from __future__ import annotations

from typing import Final

SOCKET_FOLDER: Final = "socket"
SOCKET: Final = "oip.sock"
ADDRESS: Final = "address"
GONE_FILE: Final = "gone"

INSIDE: Final = "/run/edgefleet"
"""Where a container finds the folder of its socket."""
FILES_INSIDE: Final = "/model"
"""Where a container finds the data files of its package, each at its path in the package."""

ASK: Final = b"?"
HERE: Final = b"+"
NOT_YET: Final = b"-"
GONE: Final = b"!"
ANSWER_BYTES: Final = 1024


def folder_name(digest: str) -> str:
    """Return the name of a digest's folder; short, since a socket's path must be."""
    return digest.removeprefix("sha256:")[:32]
