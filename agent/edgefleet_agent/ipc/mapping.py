"""What the gateway tells a worker of applications' memory, on a SOCK_SEQPACKET socketpair.

One message is one packet. MAP comes with one descriptor by SCM_RIGHTS. The socket is beside the
frames, because an event loop's stream cannot send descriptors; a message is sent before the request
that needs it, so a worker that meets a slot it does not know reads here first.
"""

from __future__ import annotations

import struct
from typing import Final

MESSAGE: Final = struct.Struct("<IIIIQ")
"""kind, client, slot, access as in `fast.OFFER`, size."""
MAP: Final = 1
UNMAP: Final = 2

SLOTS_MAX: Final = 1024
"""Slots of all clients together: each costs the gateway a descriptor."""
MAPPED_MAX: Final = 512 * 2**20
"""Bytes that one worker has mapped at most; its address space is that much larger for it."""
