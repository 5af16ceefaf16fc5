"""The storage formats a linear may have; one file a format."""

from m2serve.checkpoint.formats.dense import Dense
from m2serve.checkpoint.formats.fp8_block import Fp8Block
from m2serve.checkpoint.formats.int4_awq import Int4Awq
from m2serve.checkpoint.formats.int4_packed import Int4Packed
from m2serve.checkpoint.formats.int8 import Int8Ascend, Int8Channel
from m2serve.checkpoint.formats.mxfp4 import Mxfp4
from m2serve.checkpoint.formats.nvfp4 import Nvfp4CompressedTensors, Nvfp4ModelOpt
from m2serve.checkpoint.formats.storage import StorageFormat, TensorInfo, TensorRule

FORMATS: tuple[type[StorageFormat], ...] = (
    Dense,
    Fp8Block,
    Nvfp4ModelOpt,
    Nvfp4CompressedTensors,
    Mxfp4,
    Int4Packed,
    Int4Awq,
    Int8Channel,
    Int8Ascend,
)

__all__ = [
    "FORMATS",
    "Dense",
    "Fp8Block",
    "Int4Awq",
    "Int4Packed",
    "Int8Ascend",
    "Int8Channel",
    "Mxfp4",
    "Nvfp4CompressedTensors",
    "Nvfp4ModelOpt",
    "StorageFormat",
    "TensorInfo",
    "TensorRule",
]
