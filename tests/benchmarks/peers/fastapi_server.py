"""What anyone can build in an hour: FastAPI, uvicorn, orjson and a session in the same process.

usage: fastapi_server.py MODEL UNIX_SOCKET, in an environment that has these packages.
"""

from __future__ import annotations

import sys
from typing import Annotated

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
DATATYPES = {"float32": "FP32", "int64": "INT64"}
app = FastAPI()


@app.post("/v2/models/{model}/infer")
async def infer(model: str, request: Annotated[Request, None]) -> Response:
    """Answer one request, without any of the checks that edgefleet does."""
    document = orjson.loads(await request.body())
    inputs = {
        tensor["name"]: np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        for tensor in document["inputs"]
    }
    outputs = [
        {"name": name, "datatype": DATATYPES[str(found.dtype)], "shape": found.shape,
         "data": found.ravel()}
        for name, found in zip(names, session.run(names, inputs), strict=True)
    ]  # fmt: skip
    answer = {"model_name": model, "model_version": "1", "outputs": outputs}
    return Response(
        orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
    )


uvicorn.run(app, uds=sys.argv[2], log_level="warning", access_log=False)
