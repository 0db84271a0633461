"""The schema of TFLite files, version 3, as far as ai-edge-litert 2.3 knows it.

A test compares every table, field, type and number with the schema that the library ships.
"""

from __future__ import annotations

from typing import Final

from edgefleet_shared.flatbuffer import Field, Schema

POSITIVE: Final = "positive"
SUBGRAPH: Final = "subgraph"
"""What the names of two kinds of numbers in options begin with: those that runtimes divide by, and
those that name a subgraph."""

_TABLES: Final = """
Model version:I operator_codes:[OperatorCode] subgraphs:[SubGraph] description:s buffers:[Buffer]
 metadata_buffer:[i] metadata:[Metadata] signature_defs:[SignatureDef]
 external_buffer_groups:[ExternalBufferGroup] external_buffers:[ExternalBuffer]
OperatorCode deprecated_builtin_code:b custom_code:s version:i builtin_code:i
SubGraph tensors:[Tensor] inputs:[i] outputs:[i] operators:[Operator] name:s
 debug_metadata_index:i
Tensor shape:[i] type:b buffer:I name:s quantization:QuantizationParameters is_variable:?
 sparsity:SparsityParameters shape_signature:[i] has_rank:? variant_tensors:[VariantSubType]
 external_buffer:I
QuantizationParameters min:[i] max:[i] scale:[i] zero_point:[q] details_type:B
 details:u:QuantizationDetails quantized_dimension:i
SparsityParameters traversal_order:[i] block_map:[i] dim_metadata:[DimensionMetadata]
DimensionMetadata format:b dense_size:i array_segments_type:B array_segments:u:SparseIndexVector
 array_indices_type:B array_indices:u:SparseIndexVector
VariantSubType shape:[i] type:b has_rank:?
Operator opcode_index:I inputs:[i] outputs:[i] builtin_options_type:B
 builtin_options:u:BuiltinOptions custom_options:[B] custom_options_format:b
 mutating_variable_inputs:[B] intermediates:[i] large_custom_options_offset:Q
 large_custom_options_size:Q builtin_options2_type:B builtin_options2:u:BuiltinOptions2
 debug_metadata_index:i
Buffer data:[B] offset:Q size:Q
Metadata name:s buffer:I
TensorMap name:s tensor_index:I
SignatureDef inputs:[TensorMap] outputs:[TensorMap] signature_key:s - subgraph_index:I
ExternalBufferGroup name:s
ExternalBuffer id:I group:I offset:Q length:Q packing:s
CustomQuantization custom:[B]
BlockwiseQuantization scales:i zero_points:i block_size:i block_shape:[i]
MultiAxisQuantization scales:i zero_points:i block_size:i quantized_dimensions:[i]
Int32Vector values:[i]
Uint16Vector values:[H]
Uint8Vector values:[B]
"""

# One a number of the union, from 1 on; p: a positive int32, g and G: of a subgraph.
_BUILTIN_OPTIONS: Final = """
Conv2D b p p b i i b; DepthwiseConv2D b p p i b i i; ConcatEmbeddings i [i] [i]; LSHProjection b;
Pool2D b p p p p b; SVDF i b ?; RNN b ?; FullyConnected b b ? ? b [B]; Softmax f;
Concatenation i b; Add b ?; L2Norm b; LocalResponseNormalization i f f f; LSTM b f f b ?;
ResizeBilinear - - ? ?; Call G; Reshape [i]; SkipGram i i ?; SpaceToDepth p;
EmbeddingLookupSparse b; Mul b; Pad; Gather i i; BatchToSpaceND; SpaceToBatchND; Transpose;
Reducer ?; Sub b ?; Div b; Squeeze [i]; SequenceRNN ? b ?; StridedSlice i i i i i ?; Exp; TopKV2;
Split p; LogSoftmax; Cast b b; Dequantize; MaximumMinimum; ArgMax b; Less; Neg; PadV2; Greater;
GreaterEqual; LessEqual; Select; Slice; TransposeConv b p p b b; SparseToDense ?; Tile;
ExpandDims; Equal; NotEqual; Shape b; Pow; ArgMin b; FakeQuant f f i ?; Pack i i; LogicalOr;
OneHot i; LogicalAnd; LogicalNot; Unpack i i; FloorDiv; Square; ZerosLike; Fill;
BidirectionalSequenceLSTM b f f ? ? ?; BidirectionalSequenceRNN ? b ? ?;
UnidirectionalSequenceLSTM b f f ? ? ?; FloorMod; Range; ResizeNearestNeighbor ? ?; LeakyRelu f;
SquaredDifference; MirrorPad b; Abs; SplitV p; Unique b; ReverseV2; AddN; GatherNd; Cos; Where;
Rank; ReverseSequence i i; MatrixDiag; Quantize; MatrixSetDiag; HardSwish; If g g; While g g;
DepthToSpace p; NonMaxSuppressionV4; NonMaxSuppressionV5; ScatterNd; SelectV2; Densify;
SegmentSum; BatchMatMul ? ? ?; Cumsum ? ?; CallOnce g; BroadcastTo; Rfft2d;
Conv3D b p p p b i i i; Hashtable i b b; HashtableFind; HashtableImport; HashtableSize;
VarHandle s s; ReadVariable; AssignVariable; Random q q; Bucketize [i]; Gelu ?;
DynamicUpdateSlice; UnsortedSegmentProd; UnsortedSegmentMax; UnsortedSegmentMin;
UnsortedSegmentSum; ATan2; Sign; Bitcast; BitwiseXor; RightShift;
"""

_BUILTIN_OPTIONS_2: Final = """
StablehloConcatenate q; StablehloBroadcastInDim [q]; StablehloSlice [q] [q] [q];
StablehloConvolution [q] [q] [q] [q] [B] q q [q] q q [q] q q [q] q q [i];
StablehloCustomCall s ? s i [i] [B]; StablehloReduce [q] g; StablehloScatter ? [q] [q] [q] q ? g;
StablehloCompare I I; StablehloDynamicSlice [q]; StablehloPad [q] [q] [q]; StablehloIota q;
StablehloDotGeneral [q] [q] [q] [q] [i]; StablehloReduceWindow [q] [q] [q] [q] [q] g;
StablehloSort q ? g; StablehloWhile g g; StablehloGather [q] [q] [q] q [q] ?;
StablehloTranspose [q]; Dilate; StablehloRngBitGenerator b; ReduceWindow i;
StableHLOComposite s g [B] b i; StablehloShiftLeft; StablehloCase [g];
"""

ELEMENT_BITS: Final = (
    32, 16, 32, 8, 64, 0, 8, 16, 64, 8, 64, 128, 64, 0, 0, 32, 16, 4, 16, 2, 4, 8, 8,
)  # fmt: skip
"""Bits of an element by tensor type; 0 where it has no size of its own: text, resource, variant."""

DATATYPES: Final = {
    0: "FP32", 1: "FP16", 2: "INT32", 3: "UINT8", 4: "INT64", 5: "BYTES", 6: "BOOL", 7: "INT16",
    9: "INT8", 10: "FP64", 12: "UINT64", 15: "UINT32", 16: "UINT16",
}  # fmt: skip
"""Tensor type to its name in the Open Inference Protocol, of those that have one."""

LAST_OPERATOR: Final = 209
CUSTOM: Final = 32
DELEGATE: Final = 51
PLACEHOLDER: Final = 127
STABLEHLO_CUSTOM_CALL: Final = 173


def _tables() -> dict[str, tuple[Field, ...]]:
    joined = _TABLES.replace("\n ", " ").strip().split("\n")
    found = {}
    for line in joined:
        name, *fields = line.split()
        found[name] = tuple(Field(*field.partition(":")[::2]) if field != "-" else Field("", "-")
                            for field in fields)  # fmt: skip
    return found


def _options(text: str) -> dict[str, tuple[Field, ...]]:
    found = {}
    for one in text.replace("\n", " ").split(";"):
        if one.strip():
            name, *kinds = one.split()
            found[f"{name}Options"] = tuple(_option(*pair) for pair in enumerate(kinds))
    return found


def _option(slot: int, kind: str) -> Field:
    if kind == "p":
        return Field(f"{POSITIVE} {slot}", "i")
    if kind in {"g", "G", "[g]"}:
        return Field(f"{SUBGRAPH} {slot}", kind.replace("g", "i").replace("G", "I"))
    return Field(str(slot), kind)


_FIRST, _SECOND = _options(_BUILTIN_OPTIONS), _options(_BUILTIN_OPTIONS_2)

SCHEMA: Final = Schema(
    {**_tables(), **_FIRST, **_SECOND},
    {
        "BuiltinOptions": ("", *_FIRST),
        "BuiltinOptions2": ("", *_SECOND),
        "QuantizationDetails": (
            "", "CustomQuantization", "BlockwiseQuantization", "MultiAxisQuantization",
        ),
        "SparseIndexVector": ("", "Int32Vector", "Uint16Vector", "Uint8Vector"),
    },
)  # fmt: skip
