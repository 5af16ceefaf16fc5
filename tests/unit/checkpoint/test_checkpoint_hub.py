"""Names to folders, with stand-ins for the hubs' packages."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx2
import pytest

from m2serve.checkpoint.hub import FILE_PATTERNS, resolve
from m2serve.errors import CheckpointError, UsageError

MODEL = "MiniMaxAI/MiniMax-M2.5"
COMMIT = "0fe00c84" * 5


class FakeHub(ModuleType):
    """Answers as huggingface_hub and modelscope do, and remembers what it was asked."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.folder = folder
        self.calls: list[dict[str, Any]] = []
        self.lookup_error: Exception | None = None
        self.download_error: Exception | None = None
        self.cached = False

    def HfApi(self) -> Any:
        return SimpleNamespace(model_info=self.model_info)

    def model_info(self, model: str, revision: str | None) -> Any:
        if self.lookup_error is not None:
            raise self.lookup_error
        self.calls.append({"model": model, "lookup": revision})
        return SimpleNamespace(sha=COMMIT)

    def snapshot_download(self, model: str, **options: Any) -> str:
        self.calls.append({"model": model, **options})
        if self.download_error is not None:
            raise self.download_error
        if options.get("local_files_only") and not self.cached:
            raise FileNotFoundError("not in the cache")
        return str(self.folder)


@pytest.fixture
def huggingface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub("huggingface_hub", tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


@pytest.fixture
def modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub("modelscope", tmp_path)
    monkeypatch.setitem(sys.modules, "modelscope", fake)
    return fake


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in names else find(name)
    )


def test_a_folder_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, huggingface: FakeHub
) -> None:
    (tmp_path / MODEL).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve(MODEL) == Path(MODEL)
    assert resolve(str(tmp_path)) == tmp_path
    assert huggingface.calls == []


@pytest.mark.parametrize(
    "model",
    [
        "./model",
        "/no/such/model",
        "~/model",
        "~nobody-here/model",
        "a/b/c",
        "models/",
        "..",
        "C:\\models\\m2",
    ],
)
def test_a_path_that_does_not_exist(model: str, huggingface: FakeHub) -> None:
    if model == "..":
        assert resolve(model) == Path("..")
        return
    with pytest.raises(UsageError, match="does not exist"):
        resolve(model)
    assert huggingface.calls == []


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UsageError, match="is a file"):
        resolve(str(file))


@pytest.mark.parametrize(
    "model", ["minimax", "a b/c", "", "a/b?x=1", "-a/b", "é/b", "a/" + "b" * 200]
)
def test_what_is_neither_path_nor_id(model: str, huggingface: FakeHub) -> None:
    with pytest.raises(UsageError, match="neither a folder here nor a hub id"):
        resolve(model)
    assert huggingface.calls == []


def test_revision_is_pinned_to_a_commit(tmp_path: Path, huggingface: FakeHub) -> None:
    assert resolve(MODEL, revision="main") == tmp_path
    lookup, download = huggingface.calls
    assert lookup == {"model": MODEL, "lookup": "main"}
    assert download == {"model": MODEL, "revision": COMMIT, "allow_patterns": list(FILE_PATTERNS)}


def test_weights_can_be_left_out(huggingface: FakeHub, modelscope: FakeHub) -> None:
    resolve(MODEL, weights=False)
    resolve(MODEL, hub="modelscope", weights=False)
    for call in (huggingface.calls[-1], modelscope.calls[-1]):
        assert call["allow_patterns"] == ["*.json", "*.jinja", "*.txt"]


def test_only_harmless_files_are_asked_for() -> None:
    assert set(FILE_PATTERNS) == {"*.safetensors", "*.json", "*.jinja", "*.txt"}


def test_hub_refusals_are_one_sentence(huggingface: FakeHub) -> None:
    huggingface.lookup_error = OSError("401 Client Error\nlong\nstory")
    with pytest.raises(CheckpointError, match="Hugging Face did not give") as caught:
        resolve(MODEL, revision="v1")
    assert "\n" not in str(caught.value)
    assert "'v1'" in str(caught.value)


def test_an_earlier_download_serves_when_offline(tmp_path: Path, huggingface: FakeHub) -> None:
    huggingface.lookup_error = ConnectionError("no network")
    huggingface.cached = True
    assert resolve(MODEL) == tmp_path
    assert huggingface.calls == [{"model": MODEL, "revision": None, "local_files_only": True}]


def test_the_http_clients_own_errors_count_as_offline(tmp_path: Path, huggingface: FakeHub) -> None:
    huggingface.lookup_error = httpx2.ConnectError("Name or service not known")
    with pytest.raises(CheckpointError, match="Name or service not known"):
        resolve(MODEL)
    huggingface.cached = True
    assert resolve(MODEL) == tmp_path


def test_an_interrupted_download_is_not_served(huggingface: FakeHub) -> None:
    huggingface.download_error = OSError("connection reset")
    huggingface.cached = True
    with pytest.raises(CheckpointError, match="connection reset"):
        resolve(MODEL)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "huggingface_hub", "modelscope")
    with pytest.raises(UsageError, match=r"pip install 'm2serve\[hub\]'"):
        resolve(MODEL)
    with pytest.raises(UsageError, match=r"pip install 'm2serve\[modelscope\]'"):
        resolve(MODEL, hub="modelscope")


def test_auto_takes_modelscope_when_it_is_the_one_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modelscope: FakeHub
) -> None:
    without(monkeypatch, "huggingface_hub")
    assert resolve(MODEL, revision="v1.0.0") == tmp_path
    (call,) = modelscope.calls
    assert call == {"model": MODEL, "revision": "v1.0.0", "allow_patterns": list(FILE_PATTERNS)}


def test_modelscope_refusals(modelscope: FakeHub) -> None:
    class NotExistError(Exception):
        pass

    modelscope.download_error = NotExistError("no such model")
    with pytest.raises(CheckpointError, match=r"ModelScope did not give .*no such model"):
        resolve(MODEL, hub="modelscope")


def test_unknown_hub(huggingface: FakeHub) -> None:
    with pytest.raises(UsageError, match="'gitlab'"):
        resolve(MODEL, hub="gitlab")  # type: ignore[arg-type]
