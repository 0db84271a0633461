"""What onnxruntime by itself does with hostile models, without our lint and without a sandbox.

`python -m tests.adversarial.runtime_alone` prints a JSON object for the version that is installed;
other versions: `uv run --isolated --no-project --python 3.11 --with onnxruntime==1.24.1 --with onnx
python -m tests.adversarial.runtime_alone`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.adversarial.hostile_models import SECRET, VARIANTS, lay_out


def outcome(path: Path) -> str:
    """Load and run a model in a child; say in a word how that ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(writer, _run(path).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"crashed: {signal.Signals(os.WTERMSIG(status)).name}"
    return text


def _run(path: Path) -> str:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - its errors share no base
        return "refused: " + str(error).split(": ")[-1].splitlines()[0][:80]
    answer = session.run(None, {"x": np.ones((1, 4), np.float32)})[0]
    leaked = np.allclose(answer, SECRET.reshape(4, 2).sum(0))
    return "loaded: gave the secret away" if leaked else "loaded"


def main() -> None:
    """Try every model."""
    import onnxruntime

    found = {}
    for name, hostile in VARIANTS.items():
        with tempfile.TemporaryDirectory() as base:
            folder = Path(base) / "package"
            lay_out(folder)
            path = folder / "model.onnx"
            path.write_bytes(hostile.build(folder).SerializeToString())
            found[name] = outcome(path)
    json.dump({"onnxruntime": onnxruntime.__version__, "outcomes": found}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
