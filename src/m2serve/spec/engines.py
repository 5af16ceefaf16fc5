"""Inference engines, their releases and what each release knows, read from engines.toml. No torch.

A flag, a variable or a kernel has `since` (the first release with it, "" for every release that
has the model) and `until` (the first without it, "" while it lasts): what a release does not know
is never emitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from m2serve.errors import M2Error, UsageError
from m2serve.spec.tables import check_tables, read_rows, read_toml
from m2serve.spec.versions import Version

FILE = "engines.toml"
OPERATIONS = ("moe", "linear", "attention")


@dataclass(frozen=True)
class Release:
    """`image` is "" for none. A known release; others may be asked for too."""

    version: str
    image: str = ""
    note: str = ""
    source: str = ""


@dataclass(frozen=True)
class Floor:
    """The oldest release for checkpoints with this base, quantization and architecture; "" is any.

    `reason` is one sentence.
    """

    version: str
    reason: str
    source: str
    base: str = ""
    quantization: str = ""
    arch: str = ""


@dataclass(frozen=True)
class Flag:
    """`key` is our word for it, the same in every engine (vLLM's where it has one)."""

    key: str
    name: str
    since: str = ""
    until: str = ""
    is_switch: bool = False


@dataclass(frozen=True)
class EnvVar:
    name: str
    since: str = ""
    until: str = ""
    purpose: str = ""


@dataclass(frozen=True)
class Default:
    """What a release does when the flag of `key` is left out, on a device of at least
    `min_device_gib` and one of `archs` (empty: any).
    """

    key: str
    value: str
    since: str = ""
    until: str = ""
    min_device_gib: int = 0
    archs: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Image:
    """The image for these architectures where it is not the engine's own; `name` has {version}."""

    archs: tuple[str, ...]
    name: str
    source: str


@dataclass(frozen=True)
class Kernel:
    """An implementation of an operation ("moe", "linear", "attention") for weights in `formats`
    (families: fp8, nvfp4, mxfp4, int4, int8, bf16) on `archs`. `choice` is the value of the flag
    `choice_key` that asks for it, "" when it cannot be asked for. `is_weight_only`: weights are
    unpacked to BF16 in the kernel. `is_broken`: it exists and gives wrong results there; `note`.
    """

    name: str
    operation: str
    formats: tuple[str, ...]
    archs: tuple[str, ...]
    source: str
    since: str = ""
    until: str = ""
    choice_key: str = ""
    choice: str = ""
    is_weight_only: bool = False
    is_broken: bool = False
    note: str = ""


@dataclass(frozen=True)
class Engine:
    """`default_version` is planned for when the user names none. Parsers are names for flags:
    `reasoning_parser` splits thinking off, `append_think_parser` leaves it in content; "" for our
    own engine means it has none to name. `archs` it runs on, `image` with {version}.
    """

    name: str
    title: str
    default_version: str
    first_version: str
    image: str
    archs: tuple[str, ...]
    quantizations: tuple[str, ...]
    command: tuple[str, ...]
    reasoning_parser: str
    append_think_parser: str
    tool_parser: str
    source: str
    images: tuple[Image, ...] = ()
    releases: tuple[Release, ...] = ()
    floors: tuple[Floor, ...] = ()
    flags: tuple[Flag, ...] = ()
    env: tuple[EnvVar, ...] = ()
    defaults: tuple[Default, ...] = ()
    kernels: tuple[Kernel, ...] = ()

    def flag(self, key: str, version: str) -> str | None:
        """The flag's name in this release, or None when the release does not know it."""
        fits = (f.name for f in self.flags if f.key == key and in_release(f, version))
        return next(fits, None)

    def knows_flag(self, name: str, version: str) -> bool:
        """Whether the release takes this flag, as far as the table goes."""
        return any(f.name == name and in_release(f, version) for f in self.flags)

    def knows_env(self, name: str, version: str) -> bool:
        """Whether the release reads this variable, as far as the table goes."""
        return any(e.name == name and in_release(e, version) for e in self.env)

    def default(
        self, key: str, version: str, *, arch: str = "", device_gib: float = 0.0
    ) -> str | None:
        """The release's value for a flag that is left out, or None when not known."""
        fits = (
            row.value
            for row in self.defaults
            if row.key == key
            and in_release(row, version)
            and device_gib >= row.min_device_gib
            and (not row.archs or arch in row.archs)
        )
        return next(fits, None)

    def floors_for(self, base: str, quantization: str, arch: str) -> tuple[Floor, ...]:
        """The floors that bind such a deployment, the highest first."""
        fits = [
            floor
            for floor in self.floors
            if floor.base in ("", base)
            and floor.quantization in ("", quantization)
            and floor.arch in ("", arch)
        ]
        return tuple(sorted(fits, key=lambda floor: Version.parse(floor.version), reverse=True))

    def kernels_for(
        self, operation: str, format: str, arch: str, version: str
    ) -> tuple[Kernel, ...]:
        """Kernels of this release for weights in a format of spec.cost, in the engine's order of
        preference, broken ones included.
        """
        family = format_family(format)
        return tuple(
            kernel
            for kernel in self.kernels
            if kernel.operation == operation
            and family in kernel.formats
            and arch in kernel.archs
            and in_release(kernel, version)
        )

    def image_for(self, version: str, arch: str = "") -> str:
        """The container image of a release for an architecture, "" when the engine has none."""
        own = next((image.name for image in self.images if arch in image.archs), "")
        known = {release.version: release.image for release in self.releases}
        template = own or known.get(version) or self.image
        return template.replace("{version}", version.removeprefix("v"))


def in_release(row: Flag | EnvVar | Default | Kernel, version: str) -> bool:
    """Whether `since` <= version < `until`; UsageError for a text that is no version."""
    own = Version.parse(version)
    is_after = not row.since or own >= Version.parse(row.since)
    return is_after and (not row.until or own < Version.parse(row.until))


def format_family(format: str) -> str:
    """fp8, nvfp4, mxfp4, int4, int8, bf16 or bits of a storage format of spec.cost."""
    head = format.partition("-")[0]
    return "bf16" if head == "f32" else head


@cache
def load_engines() -> tuple[Engine, ...]:
    """Every engine of engines.toml; M2Error when the file is wrong."""
    return read_engines(read_toml(FILE))


def find_engine(name: str) -> Engine:
    """By name; UsageError listing the known ones."""
    for engine in load_engines():
        if engine.name == name.strip().lower():
            return engine
    known = ", ".join(engine.name for engine in load_engines())
    raise UsageError(f"engine {name!r} is unknown; one of {known}")


def read_engines(document: Mapping[str, Any]) -> tuple[Engine, ...]:
    """The engines of a parsed engines.toml; versions must parse, operations must exist."""
    check_tables(document, ("engine",), FILE)
    engines = read_rows(Engine, document.get("engine"), f"{FILE}, engine")
    for engine in engines:
        _check_engine(engine, f"{FILE}, engine {engine.name!r}")
    return engines


def _check_engine(engine: Engine, place: str) -> None:
    texts = [engine.default_version, engine.first_version]
    texts += [release.version for release in engine.releases]
    texts += [floor.version for floor in engine.floors]
    rows: list[Flag | EnvVar | Default | Kernel] = [*engine.flags, *engine.env]
    for row in [*rows, *engine.defaults, *engine.kernels]:
        texts += [text for text in (row.since, row.until) if text]
        if row.since and row.until and Version.parse(row.since) >= Version.parse(row.until):
            raise M2Error(f"{place}: {row!r} ends before it begins")
    for text in texts:
        try:
            Version.parse(text)
        except UsageError as error:
            raise M2Error(f"{place}: {error}") from error
    keys = {flag.key for flag in engine.flags}
    for kernel in engine.kernels:
        if kernel.operation not in OPERATIONS:
            raise M2Error(f"{place}, kernel {kernel.name!r}: operation {kernel.operation!r}")
        if kernel.choice_key and kernel.choice_key not in keys:
            raise M2Error(f"{place}, kernel {kernel.name!r}: no flag {kernel.choice_key!r}")
