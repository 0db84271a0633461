"""What gateway and zygote agree on, without importing a runtime or an array library."""

from __future__ import annotations

import struct
from typing import Final

REQUEST: Final = struct.Struct("<I16s")
"""To the zygote: a request's number and the runtime's name, with the worker's socket."""

REPLY: Final = struct.Struct("<Ii")
"""From the zygote: the number, and the worker's pid or a negative errno."""

VARIABLES: Final = {
    "ORT_DISABLE_TELEMETRY": "1",  # its wheels phone home by default; must stand before the import
    "MALLOC_TRIM_THRESHOLD_": "131072",  # else freed weights stay with the process
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "OPENBLAS_NUM_THREADS": "1",  # a process with threads cannot be forked safely
    "OMP_NUM_THREADS": "1",
}
"""Environment of every process that may import a runtime."""
