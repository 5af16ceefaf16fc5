"""Published checkpoints of the family, read from variants.toml. No torch.

Every row has a source. Bytes are exact for a uniform format (spec/cost.py computes them from the
shape and the formats of the parts); a row may pin `checkpoint_bytes` where a release differs.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from m2serve.errors import M2Error, UsageError
from m2serve.spec.config_formats import ConfigFormats, config_formats
from m2serve.spec.cost import WeightBytes, group_size, linear_bytes, weight_bytes
from m2serve.spec.shape import ModelShape, load_config
from m2serve.spec.tables import check_tables, read_row, read_rows, read_toml

FILE = "variants.toml"
_OFFICIAL = "MiniMaxAI/MiniMax-M2, -M2.1, -M2.5 or -M2.7"
QUANTIZATIONS = ("fp8", "bf16", "nvfp4", "mxfp4", "int4-awq", "w8a8", "gguf", "mlx")


@dataclass(frozen=True)
class Variant:
    """`name` is the hub id, or the folder it was read from. Formats are spec.cost.linear_bytes'.

    `quantization` is the family's word: fp8, bf16, nvfp4, mxfp4, int4-awq, w8a8, gguf, mlx.
    `base` is M2, M2.1, M2.5 or M2.7, "" when a folder does not tell. `num_experts` 256, or fewer
    after pruning (REAP). `draft` is the hub id of an Eagle3 draft made for it, "" when none exists.
    `group_size`: weights that share a scale along a row, 0 for a scale a row or unquantised.
    """

    name: str
    base: str
    quantization: str
    experts_format: str
    attention_format: str
    head_format: str
    router_dtype: str
    num_experts: int
    max_model_len: int
    checkpoint_bytes: int
    licence: str
    licence_warning: str
    draft: str
    source: str
    group_size: int = 0
    has_kv_scales: bool = False
    embedding_format: str = "bf16"
    aliases: tuple[str, ...] = ()
    own_shape: ModelShape | None = None

    @property
    def shape(self) -> ModelShape:
        """The folder's own shape, or the family's with this variant's experts and context."""
        if self.own_shape is not None:
            return self.own_shape
        family = dataclasses.asdict(load_family())
        family.pop("source")
        return ModelShape(
            **family,
            num_local_experts=self.num_experts,
            max_position_embeddings=self.max_model_len,
        )

    @property
    def weight_bytes(self) -> WeightBytes:
        """Bytes by component, in all `checkpoint_bytes`: what a row pins beyond its formats' bytes
        counts as experts.
        """
        computed = _computed_bytes(self)
        pinned = self.checkpoint_bytes - computed.total
        return dataclasses.replace(computed, experts=computed.experts + pinned)

    @property
    def quantised_parts(self) -> tuple[str, ...]:
        """Which of experts, attention, lm_head and embedding are not stored in BF16."""
        parts = (
            ("experts", self.experts_format),
            ("attention", self.attention_format),
            ("lm_head", self.head_format),
            ("embedding", self.embedding_format),
        )
        return tuple(name for name, format in parts if format not in ("bf16", "f32"))


@dataclass(frozen=True)
class Draft:
    """An Eagle3 draft; `num_bytes` 0: not known."""

    name: str
    base: str
    method: str
    num_bytes: int
    source: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """The sizes all releases share: ModelShape without the number of experts and the context."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rms_norm_eps: float
    intermediate_size: int
    num_experts_per_tok: int
    vocab_size: int
    source: str


@dataclass(frozen=True)
class Base:
    """What the releases of one training share."""

    name: str
    max_model_len: int
    licence: str
    licence_warning: str
    source: str


@dataclass(frozen=True)
class _Row:
    name: str
    base: str
    quantization: str
    experts_format: str
    attention_format: str
    source: str
    head_format: str = "bf16"
    embedding_format: str = "bf16"
    router_dtype: str = "float32"
    num_experts: int = 256
    max_model_len: int = 0
    checkpoint_bytes: int = 0
    draft: str = ""
    has_kv_scales: bool = False
    aliases: tuple[str, ...] = ()


@cache
def load_variants() -> tuple[Variant, ...]:
    """Every checkpoint of variants.toml; M2Error when the file is wrong."""
    return read_variants(_document())


@cache
def load_family() -> Family:
    """The shared sizes; M2Error when the file is wrong."""
    return read_row(Family, _document().get("family"), f"{FILE}, family")


@cache
def load_bases() -> tuple[Base, ...]:
    """Context and licence of M2, M2.1, M2.5 and M2.7; M2Error when the file is wrong."""
    rows = _document().get("base")
    return read_rows(Base, rows, f"{FILE}, base", positive=("max_model_len",))


@cache
def load_drafts() -> tuple[Draft, ...]:
    """Every draft of variants.toml; M2Error when the file is wrong."""
    return read_rows(Draft, _document().get("draft"), f"{FILE}, draft")


def read_variants(document: Mapping[str, Any]) -> tuple[Variant, ...]:
    """The variants of a parsed variants.toml; bases, formats and drafts must exist."""
    check_tables(document, ("family", "base", "variant", "draft"), FILE)
    rows = read_rows(_Row, document.get("variant"), f"{FILE}, variant", positive=("num_experts",))
    return tuple(_variant(row) for row in rows)


def find_variant(name: str | Path) -> Variant:
    """A hub id or alias in any case, or a folder with a config.json.

    Raises UsageError with near names for an unknown id, ConfigError for a folder that is none.
    """
    known = {alias.lower(): v for v in load_variants() for alias in (v.name, *v.aliases)}
    wanted = str(name).strip().rstrip("/")
    if wanted.lower() in known:
        return known[wanted.lower()]
    if os.path.isdir(wanted):  # which a name too long for a path does not make raise
        return folder_variant(Path(wanted))
    near = difflib.get_close_matches(wanted.lower(), known, n=4, cutoff=0.5)
    ends = [full for full in known if full.partition("/")[2] == wanted.lower()]
    offer = ", ".join(known[alias].name for alias in dict.fromkeys([*ends, *near]))
    hint = f"did you mean {offer or _OFFICIAL}?"
    raise UsageError(f"checkpoint {wanted!r} is neither known nor a folder; {hint}")


def folder_variant(folder: Path) -> Variant:
    """What config.json in a folder says; raises ConfigError. The base is told by the context only
    where that is unlike the others', so licence and draft may be unknown ("").
    """
    config = load_config(folder)
    shape = ModelShape.from_config(config)
    formats = config_formats(folder, config)
    bases = [b for b in load_bases() if b.max_model_len == shape.max_position_embeddings]
    base = bases[0] if len(bases) == 1 else Base("", 0, "", "", "")
    return _folder_variant(folder, shape, formats, base)


def find_draft(name: str) -> Draft:
    """A draft by hub id or alias in any case; UsageError listing the known ones."""
    for draft in load_drafts():
        if name.lower() in (draft.name.lower(), *(alias.lower() for alias in draft.aliases)):
            return draft
    known = ", ".join(draft.name for draft in load_drafts())
    raise UsageError(f"draft {name!r} is unknown; one of {known}")


def dequantised(variant: Variant) -> Variant:
    """The variant as an engine holds it that unpacks every weight to BF16 at load."""
    plain = dataclasses.replace(
        variant,
        experts_format="bf16",
        attention_format="bf16",
        head_format="bf16",
        embedding_format="bf16",
        quantization="bf16",
        group_size=0,
    )
    return dataclasses.replace(plain, checkpoint_bytes=_computed_bytes(plain).total)


@cache
def _document() -> dict[str, Any]:
    return read_toml(FILE)


def _variant(row: _Row) -> Variant:
    place = f"{FILE}, variant {row.name!r}"
    base = next((base for base in load_bases() if base.name == row.base), None)
    if base is None:
        raise M2Error(f"{place}, base: {row.base!r} is not a base of this file")
    if row.quantization not in QUANTIZATIONS:
        raise M2Error(f"{place}, quantization: {row.quantization!r} is unknown")
    if row.draft and row.draft not in {draft.name for draft in load_drafts()}:
        raise M2Error(f"{place}, draft: {row.draft!r} is not a draft of this file")
    for key in ("experts_format", "attention_format", "head_format", "embedding_format"):
        try:
            linear_bytes(128, 128, getattr(row, key))
        except UsageError as error:
            raise M2Error(f"{place}, {key}: {error}") from error
    values = dataclasses.asdict(row) | {
        "aliases": row.aliases,
        "max_model_len": row.max_model_len or base.max_model_len,
        "licence": base.licence,
        "licence_warning": base.licence_warning,
        "group_size": group_size(row.experts_format),
    }
    return _with_bytes(Variant(**values))


def _folder_variant(folder: Path, shape: ModelShape, formats: ConfigFormats, base: Base) -> Variant:
    variant = Variant(
        name=str(folder),
        base=base.name,
        quantization=formats.quantization,
        experts_format=formats.experts,
        attention_format=formats.attention,
        head_format=formats.head,
        router_dtype="float32",
        num_experts=shape.num_local_experts,
        max_model_len=shape.max_position_embeddings,
        checkpoint_bytes=0,
        licence=base.licence,
        licence_warning=base.licence_warning,
        draft="",
        source=str(folder / "config.json"),
        group_size=group_size(formats.experts),
        has_kv_scales=formats.has_kv_scales,
        own_shape=shape,
    )
    return _with_bytes(variant)


def _with_bytes(variant: Variant) -> Variant:
    total = variant.checkpoint_bytes or _computed_bytes(variant).total
    return dataclasses.replace(variant, checkpoint_bytes=total)


def _computed_bytes(variant: Variant) -> WeightBytes:
    return weight_bytes(
        variant.shape,
        attention=variant.attention_format,
        experts=variant.experts_format,
        embedding=variant.embedding_format,
        head=variant.head_format,
        router_dtype=variant.router_dtype,
    )
