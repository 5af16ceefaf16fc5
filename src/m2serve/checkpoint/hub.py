"""From what a user calls a model to a folder on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Literal

from m2serve.errors import CheckpointError, UsageError

Hub = Literal["auto", "huggingface", "modelscope"]

# Weights, configuration, tokenizer and template; never code and never pickles.
TEXT_PATTERNS = ("*.json", "*.jinja", "*.txt")
FILE_PATTERNS = ("*.safetensors", *TEXT_PATTERNS)
# The small trained MiniMax-M2 that ships with the package.
MINIATURE = Path(__file__).parents[1] / "miniature"
MINIATURE_NAME = "m2-miniature"
# Its Eagle3 draft, in the layout of published ones.
MINIATURE_EAGLE3 = Path(__file__).parents[1] / "miniature_eagle3"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_PACKAGES = {"huggingface": "huggingface_hub", "modelscope": "modelscope"}
_EXTRAS = {"huggingface": "hub", "modelscope": "modelscope"}


def miniature_folder() -> Path:
    """Raises UsageError when this copy of the package was built without it."""
    if not (MINIATURE / "config.json").is_file():
        raise UsageError(
            "MODEL is missing, and this build has no built-in miniature: give the folder of a "
            "checkpoint, or a hub id"
        )
    return MINIATURE


def resolve(
    model: str, revision: str | None = None, hub: Hub = "auto", *, weights: bool = True
) -> Path:
    """The folder of a checkpoint: `model` itself when it is one, else downloaded by its id.

    Without `weights`, configuration, tokenizer and template are downloaded alone.
    `auto` takes Hugging Face when its package is installed, else ModelScope. On Hugging Face the
    revision becomes a commit first and every file is of that commit; ModelScope's client cannot
    look commits up, so pass one as `revision` to pin it. Raises UsageError for what is neither
    folder nor id and for a missing package, CheckpointError when the hub refuses.
    """
    # Not Path.expanduser, which raises for a user it does not know.
    folder = Path(os.path.expanduser(model))
    if model and os.path.isdir(folder):
        return folder
    if _looks_like_a_path(model):
        kind = "is a file" if os.path.isfile(folder) else "does not exist"
        raise UsageError(f"{model!r} {kind}; give the folder of a checkpoint or a hub id")
    if not _HUB_ID.fullmatch(model):
        raise UsageError(
            f"{model!r} is neither a folder here nor a hub id like MiniMaxAI/MiniMax-M2.5"
        )
    chosen = _installed_hub(model, hub)
    patterns = list(FILE_PATTERNS if weights else TEXT_PATTERNS)
    fetch = _from_huggingface if chosen == "huggingface" else _from_modelscope
    return fetch(importlib.import_module(_PACKAGES[chosen]), model, revision, patterns)


def _looks_like_a_path(model: str) -> bool:
    return (
        model.startswith((".", "/", "~"))
        or model.endswith(("/", os.sep))
        or "\\" in model
        or model.count("/") > 1
    )


def _installed_hub(model: str, hub: Hub) -> str:
    if hub != "auto" and hub not in _PACKAGES:
        raise UsageError(f"hub {hub!r} is unknown; auto, huggingface or modelscope")
    candidates = list(_PACKAGES) if hub == "auto" else [hub]
    for candidate in candidates:
        if importlib.util.find_spec(_PACKAGES[candidate]) is not None:
            return candidate
    wanted = candidates[0]
    raise UsageError(
        f"{model} is not a folder here, and downloading it needs {_PACKAGES[wanted]}: "
        f"pip install 'm2serve[{_EXTRAS[wanted]}]'"
    )


def _from_huggingface(package: Any, model: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        commit = package.HfApi().model_info(model, revision=revision).sha
    # Errors of its HTTP client reach us, too, and have no base class in common with its own.
    except Exception as error:
        cached = _cached_snapshot(package, model, revision)
        if cached is None:
            raise _refused("Hugging Face", model, revision, error) from error
        return cached
    try:
        return Path(package.snapshot_download(model, revision=commit, allow_patterns=patterns))
    except Exception as error:
        raise _refused("Hugging Face", model, revision, error) from error


def _cached_snapshot(package: Any, model: str, revision: str | None) -> Path | None:
    """An earlier download, for machines that are offline."""
    try:
        return Path(package.snapshot_download(model, revision=revision, local_files_only=True))
    except Exception:
        return None


def _from_modelscope(package: Any, model: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(package.snapshot_download(model, revision=revision, allow_patterns=patterns))
    # Its errors have no common base class short of Exception.
    except Exception as error:
        raise _refused("ModelScope", model, revision, error) from error


def _refused(hub: str, model: str, revision: str | None, error: Exception) -> CheckpointError:
    at = f" at revision {revision!r}" if revision else ""
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(
        f"{hub} did not give {model}{at}: {first_line} "
        "(check the id, the connection and, for a gated model, your login)"
    )
