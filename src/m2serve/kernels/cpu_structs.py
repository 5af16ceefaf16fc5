"""The structures of the C interface, field by field as the headers beside have them.

All point into tensors that must outlive them.
"""

from __future__ import annotations

import ctypes


class CpuWeight(ctypes.Structure):
    """m2_weight of cpu/types.h.

    `interleaved` is 0 while the tensors are as stored.
    """

    _fields_ = (
        ("format", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        ("matrices", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("group", ctypes.c_int32),
        ("block_rows", ctypes.c_int32),
        ("codes", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero_point", ctypes.c_void_p),
        ("global_scale", ctypes.c_void_p),
        ("interleaved", ctypes.c_int64),
    )


class CpuLayer(ctypes.Structure):
    """m2_layer of cpu/step.h."""

    _fields_ = (
        ("input_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("post_attention_norm", ctypes.c_void_p),
        ("correction_bias", ctypes.c_void_p),
        ("q_proj", CpuWeight),
        ("k_proj", CpuWeight),
        ("v_proj", CpuWeight),
        ("o_proj", CpuWeight),
        ("gate", CpuWeight),
        ("w13", CpuWeight),
        ("w2", CpuWeight),
    )


class CpuModel(ctypes.Structure):
    """m2_model of cpu/step.h; the model's room fills it in."""

    _fields_ = (
        ("hidden_size", ctypes.c_int64),
        ("num_layers", ctypes.c_int64),
        ("query_heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("rotary_dim", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("rms_norm_eps", ctypes.c_float),
        ("activation", ctypes.c_int32),
        ("embedding_format", ctypes.c_int32),
        ("inverse_frequencies", ctypes.c_void_p),
        ("embedding", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("layers", ctypes.POINTER(CpuLayer)),
        ("lm_head", CpuWeight),
    )


class CpuKVCache(ctypes.Structure):
    """m2_kv_cache of cpu/attention.h."""

    _fields_ = (
        ("format", ctypes.c_int32),
        ("num_blocks", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
    )


class CpuBatch(ctypes.Structure):
    """m2_batch of cpu/attention.h."""

    _fields_ = (
        ("num_tokens", ctypes.c_int64),
        ("num_sequences", ctypes.c_int64),
        ("blocks", ctypes.c_int64),
        ("num_logits_rows", ctypes.c_int64),
        ("token_ids", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("slot_mapping", ctypes.c_void_p),
        ("query_start_loc", ctypes.c_void_p),
        ("seq_lens", ctypes.c_void_p),
        ("block_table", ctypes.c_void_p),
        ("logits_rows", ctypes.c_void_p),
    )


class CpuDecode(ctypes.Structure):
    """m2_decode of cpu/decoder.h."""

    _fields_ = (
        ("batch", CpuBatch),
        ("sources", ctypes.c_void_p),
        ("previous", ctypes.c_void_p),
        ("choices", ctypes.c_void_p),
        ("vocab", ctypes.c_int64),
        ("chosen", ctypes.c_void_p),
    )


# In the order of m2_abi.
STRUCTURES = (CpuWeight, CpuLayer, CpuModel, CpuKVCache, CpuBatch, CpuDecode)
