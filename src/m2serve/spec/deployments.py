"""The deployments of the five source documents, read from deployments.toml. No torch.

Each row is what its document says: the command with every flag and variable, the checkpoint, the
machine, the published figures. Where documents contradict each other or the arithmetic, a
contradiction says which side is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from m2serve.errors import M2Error, UsageError
from m2serve.spec.tables import check_tables, read_rows, read_toml

FILE = "deployments.toml"
METRICS = {
    "output_tokens_per_s": "tokens/s",
    "total_tokens_per_s": "tokens/s",
    "prefill_tokens_per_s": "tokens/s",
    "ttft_ms": "ms",
    "tpot_ms": "ms",
    "itl_ms": "ms",
    "itl_p99_ms": "ms",
    "weights_gib_per_gpu": "GiB",
    "used_mib_per_gpu": "MiB",
    "prefix_hit": "share",
    "accuracy_percent": "%",
}


@dataclass(frozen=True)
class Document:
    """`name` is short; `period` is when its figures were taken."""

    name: str
    title: str
    period: str


@dataclass(frozen=True)
class Published:
    """A figure as published, its unit in METRICS. `context_len` is what stood in the cache.

    `is_trusted` False: the arithmetic or another source speaks against it, `note` says why.
    `hardware` and `model` are "" when they are the deployment's. Unknown numbers are 0.
    """

    metric: str
    value: float
    concurrency: int = 0
    context_len: int = 0
    input_len: int = 0
    output_len: int = 0
    hardware: str = ""
    model: str = ""
    is_trusted: bool = True
    note: str = ""

    @property
    def unit(self) -> str:
        return METRICS[self.metric]


@dataclass(frozen=True)
class Deployment:
    """`flags` are "--name" or "--name value" as documented, `env` "NAME=value", `node_flags` what
    each node adds. `settings` splits them. Parallelism and workload repeat what the flags say, for
    readers that do not parse; workload numbers the document does not give are 0.

    `hardware` is for spec.hardware.parse_hardware, for one node; `also_on` other machines named.
    `variant_of` is the id of the deployment this one changes, "" for one of its own.
    """

    id: str
    title: str
    document: str
    hardware: str
    engine: str
    engine_version: str
    model: str
    num_nodes: int = 1
    also_on: tuple[str, ...] = ()
    variant_of: str = ""
    image: str = ""
    draft: str = ""
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert_parallel: bool = False
    decode_context: int = 1
    prefill_context: int = 1
    pipeline_layers: tuple[int, ...] = ()
    max_model_len: int = 0
    concurrency: int = 0
    input_len: int = 0
    output_len: int = 0
    prefix_hit: float = 0.0
    flags: tuple[str, ...] = ()
    node_flags: tuple[tuple[str, ...], ...] = ()
    env: tuple[str, ...] = ()
    host_commands: tuple[str, ...] = ()
    results: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> tuple[tuple[str, str | None], ...]:
        """(flag, value or None) in the document's order, without what nodes add."""
        return split_flags(self.flags)

    @property
    def environment(self) -> tuple[tuple[str, str], ...]:
        """(variable, value) in the document's order."""
        pairs = (entry.partition("=") for entry in self.env)
        return tuple((name, value) for name, _, value in pairs)


@dataclass(frozen=True)
class Contradiction:
    """Two sayings that exclude each other, and the one that is right. `deployments` are ids."""

    id: str
    topic: str
    says: tuple[str, ...]
    verdict: str
    evidence: str
    deployments: tuple[str, ...] = ()


@cache
def load_deployments() -> tuple[Deployment, ...]:
    """Every row of deployments.toml; M2Error when the file is wrong."""
    return read_deployments(_document())


@cache
def load_documents() -> tuple[Document, ...]:
    """The source documents; M2Error when the file is wrong."""
    return read_rows(Document, _document().get("document"), f"{FILE}, document")


@cache
def load_contradictions() -> tuple[Contradiction, ...]:
    """C1 and on; M2Error when the file is wrong."""
    rows = _document().get("contradiction")
    read = read_rows(Contradiction, rows, f"{FILE}, contradiction", key="id")
    known = {deployment.id for deployment in load_deployments()}
    for row in read:
        for named in row.deployments:
            if named not in known:
                raise M2Error(f"{FILE}, contradiction {row.id!r}, deployments: {named!r} is none")
    return read


def find_deployment(id: str) -> Deployment:
    """By id in any case; UsageError listing the known ones."""
    for deployment in load_deployments():
        if deployment.id.lower() == id.strip().lower():
            return deployment
    known = ", ".join(deployment.id for deployment in load_deployments())
    raise UsageError(f"deployment {id!r} is unknown; one of {known}")


def contradictions_of(deployment: Deployment) -> tuple[Contradiction, ...]:
    """What the sources disagree on about this deployment."""
    return tuple(c for c in load_contradictions() if deployment.id in c.deployments)


def read_deployments(document: Mapping[str, Any]) -> tuple[Deployment, ...]:
    """The deployments of a parsed deployments.toml; ids, documents and metrics must exist."""
    check_tables(document, ("document", "deployment", "contradiction"), FILE)
    rows = read_rows(
        Deployment,
        document.get("deployment"),
        f"{FILE}, deployment",
        key="id",
        positive=("num_nodes", "tensor", "pipeline", "data", "decode_context", "prefill_context"),
    )
    known = {row.id for row in rows}
    documents = {entry.name for entry in load_documents()}
    for row in rows:
        place = f"{FILE}, deployment {row.id!r}"
        if row.document not in documents:
            raise M2Error(f"{place}, document: {row.document!r} is not a document of this file")
        if row.variant_of and row.variant_of not in known:
            raise M2Error(f"{place}, variant_of: {row.variant_of!r} is not a deployment")
        if row.node_flags and len(row.node_flags) != row.num_nodes:
            raise M2Error(f"{place}, node_flags: {row.num_nodes} lists are needed, one a node")
        _check_lines(row, place)
    return rows


def split_flags(flags: tuple[str, ...]) -> tuple[tuple[str, str | None], ...]:
    """("--name value" -> ("--name", "value"); "--name" -> ("--name", None))."""
    parts = (flag.partition(" ") for flag in flags)
    return tuple((name, value if separator else None) for name, separator, value in parts)


def _check_lines(row: Deployment, place: str) -> None:
    for flag in (*row.flags, *(flag for node in row.node_flags for flag in node)):
        if not flag.startswith("--"):
            raise M2Error(f"{place}, flags: {flag!r} does not begin with --")
    for entry in row.env:
        if not entry.partition("=")[0].isidentifier() or "=" not in entry:
            raise M2Error(f"{place}, env: {entry!r} is not NAME=value")
    for result in row.results:
        if result.metric not in METRICS:
            raise M2Error(f"{place}, results: metric {result.metric!r} is unknown")
        if not result.is_trusted and not result.note:
            raise M2Error(f"{place}, results: an untrusted {result.metric} needs a note")


@cache
def _document() -> dict[str, Any]:
    return read_toml(FILE)
