"""Messages between agentd and the keeper on a SOCK_SEQPACKET socketpair, as `ipc.control` has them.

agentd asks with an id of its choice; the keeper answers each request once, in any order, and sends
`Progress` and `Ended` in between.
"""

from __future__ import annotations

import socket

import msgspec

from edgefleet_shared.package import RuntimeNeed

MESSAGE_MAX_BYTES = 128 * 1024


class Mount(msgspec.Struct, frozen=True):
    """A verified blob, and its path in the package."""

    source: str
    path: str


class Wanted(msgspec.Struct, frozen=True):
    """A container: what shall run, within which limits, reached by which folder.

    `digest` is the manifest's. `user` is `UID:GID`. `folder` is the host's path of the folder of
    `ipc.dial`, `inode` that of the `socket` in it: another one is another container.
    """

    digest: str
    model: str
    version: str
    need: RuntimeNeed
    memory_mb: int
    cpus: float
    user: str
    folder: str
    inode: int
    mounts: list[Mount] = []


class Pull(msgspec.Struct, tag=True, frozen=True):
    """Bring an image, unless it is here."""

    id: int
    image: str


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Give a pull up; what docker has of the layers stays. Not answered, but the pull is."""

    id: int
    pull: int


class Start(msgspec.Struct, tag=True, frozen=True):
    """Have this container running, once: the one that runs already if it is the same."""

    id: int
    wanted: Wanted


class Hold(msgspec.Struct, tag=True, frozen=True):
    """It has proved itself: dockerd shall start it again whenever it ends."""

    id: int
    digest: str


class Sweep(msgspec.Struct, tag=True, frozen=True):
    """Remove this device's containers but those of `keep`; of one model alone if `model` says."""

    id: int
    keep: list[str]
    model: str = ""


class Remove(msgspec.Struct, tag=True, frozen=True):
    """Remove the container of a digest, if there is one."""

    id: int
    digest: str


class Look(msgspec.Struct, tag=True, frozen=True):
    """Ask whether an image is here."""

    id: int
    image: str


class Drop(msgspec.Struct, tag=True, frozen=True):
    """Remove images, unless somebody else's container uses them."""

    id: int
    images: list[str]


class Done(msgspec.Struct, tag=True, frozen=True):
    """Answer to any request; `images`: pulled now, here, or gone now, as was asked."""

    id: int
    ok: bool = True
    code: str = ""
    message: str = ""
    hint: str = ""
    images: list[str] = []


class Progress(msgspec.Struct, tag=True, frozen=True):
    """How far a pull is, in bytes, as far as docker knows already."""

    id: int
    done: int
    total: int


class Ended(msgspec.Struct, tag=True, frozen=True):
    """A container ended by itself: `code` is `crashed` or `out_of_memory`."""

    model: str
    version: str
    digest: str
    code: str
    message: str


Request = Pull | Cancel | Start | Hold | Remove | Sweep | Look | Drop
Message = Request | Done | Progress | Ended

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def send(sock: socket.socket, message: Message) -> None:
    """Send one message.

    Raises:
        OSError: The peer is gone.
    """
    sock.send(_encode(message))


def receive(sock: socket.socket) -> Message | None:
    """Receive one message; None at the end.

    Raises:
        OSError: The socket failed.
        msgspec.DecodeError: The peer does not speak this protocol.
    """
    data = sock.recv(MESSAGE_MAX_BYTES)
    return _decode(data) if data else None
