"""What to say of a body that was to be JSON and is not: mostly it is the input itself.

Whether a body is raw is said by `Inference-Header-Content-Length: 0`, as Triton and KServe have it,
and not guessed from Content-Type or content: curl calls everything a form, and a tensor may begin
like a JPEG.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

_KINDS: Final = {
    b"\xff\xd8\xff": "a JPEG file", b"\x89PNG": "a PNG file", b"RIFF": "a WebP file",
    b"GIF8": "a GIF file", b"BM": "a BMP file", b"\x93NUMPY": "a .npy file", b"--": "a form",
}  # fmt: skip
_JSON: Final = {b"", b"{", b"[", b'"'}
RAW: Final = "Inference-Header-Content-Length: 0"


def told(body: memoryview, inputs: Collection[str], why: str) -> str:
    """Return the sentences for whoever sent it.

    Args:
        body: What was to be JSON.
        inputs: Names of what the model takes.
        why: What the JSON decoder says.
    """
    head = bytes(body[:16])
    if head.lstrip()[:1] in _JSON:
        return f"The request is not as the protocol says: {why}."
    kind = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), "")
    text = f"The body is not JSON; it begins like {kind}." if kind else "The body is not JSON."
    if kind == "a form":
        return f"{text} Send the file itself: curl --data-binary @FILE with the header '{RAW}'."
    if len(inputs) == 1:
        name = next(iter(inputs))
        return (
            f"{text} If it is the input {name!r} itself, add the header '{RAW}' "
            f"(curl: --header '{RAW}' --data-binary @FILE)."
        )
    return (
        f"{text} This model takes {', '.join(inputs)}: send JSON, with binary tensors behind it, "
        "and its length as Inference-Header-Content-Length."
    )
