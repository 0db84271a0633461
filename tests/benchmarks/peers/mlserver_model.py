"""MLServer's runtime for one ONNX model, as its documentation says to write one."""

from __future__ import annotations

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """Runs the model that `parameters.uri` names, in the server's own process."""

    async def load(self) -> bool:
        """Load the model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        given = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        found = self._session.run(self._names, given)
        outputs = [
            NumpyCodec.encode_output(name, array)
            for name, array in zip(self._names, found, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
