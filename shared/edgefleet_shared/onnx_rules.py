"""What an ONNX model may use, for publisher and device alike: operator domains, and what is a trap.

A device believes no publisher's tool: it looks at the bytes itself, by the same lists.
"""

from __future__ import annotations

from typing import Final

MEMORY_MARK: Final = "_ORT_MEM_ADDR_"
"""Location of external data that onnxruntime takes for an address in its own memory."""

MAX_OPSETS: Final = {"": 26, "ai.onnx.ml": 5, "com.microsoft": 1}
"""What onnxruntime 1.27 loads; tried one by one, and the same in 1.31."""

CONTRIB: Final = frozenset({
    "Attention", "BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "CDist",
    "ComplexMul", "ComplexMulConj", "ConvTransposeWithDynamicPads", "CropAndResize",
    "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "DequantizeLinear",
    "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "EmbedLayerNormalization", "ExpandDims",
    "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation",
    "GatedRelativePositionBias", "GatherBlockQuantized", "GatherND", "Gelu", "GemmFastGelu",
    "GridSample", "GroupNorm", "GroupQueryAttention", "Inverse", "Irfft", "IsAllFinite",
    "LongformerAttention", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16", "MatMulIntegerToFloat",
    "MatMulNBits", "MaxpoolWithMask", "MoE", "MulInteger", "MultiHeadAttention",
    "NGramRepeatBlock", "NhwcConv", "NhwcFusedConv", "NhwcMaxPool", "PackedAttention",
    "PackedMultiHeadAttention", "Pad", "QAttention", "QEmbedLayerNormalization", "QGemm",
    "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean",
    "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QMoE", "QuantizeLinear", "QuickGelu",
    "ReduceSumInteger", "RelativePositionBias", "RemovePadding", "RestorePadding", "Rfft",
    "RotaryEmbedding", "SkipGroupNorm", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "SparseToDenseMatMul", "TransposeMatMul", "Trilu",
    "UnfoldTensor", "Unique", "WordConvEmbedding",
})  # fmt: skip
"""Operators of com.microsoft that only compute. EPContext and Snpe load foreign binaries."""
