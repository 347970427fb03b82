"""The known models: how large they are, and what `--model` makes of a name."""

from pathlib import Path

import pytest
from swarm_peer.errors import ModelError
from swarm_peer.swarm.model.table import MODELS, parameters
from swarm_peer.swarm.sources import HubModel, UrlModel, model_source

BILLIONS = {
    "llama-7b": 6.738,
    "llama-13b": 13.016,
    "llama-30b": 32.529,
    "llama-65b": 65.286,
    "llama-2-7b": 6.738,
    "llama-2-13b": 13.016,
    "llama-2-70b": 68.977,
    "llama-3-8b": 8.030,
    "llama-3-70b": 70.554,
    "mistral-7b": 7.248,
    "tinyllama": 1.100,
    "smollm2-135m": 0.135,
    "smollm2-360m": 0.362,
    "smollm2-1.7b": 1.711,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_PEER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_model_has_as_many_parameters_as_is_published() -> None:
    assert {name: round(parameters(model.shape) / 1e9, 3) for name, model in MODELS.items()} == BILLIONS


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tiny", None),
        ("llama-65b", HubModel("huggyllama/llama-65b")),
        ("org/some.model-1", HubModel("org/some.model-1")),
        ("https://host/path", UrlModel("https://host/path/")),
        ("http://host:8000/", UrlModel("http://host:8000/")),
    ],
)
def test_what_a_name_means(name: str, source: object) -> None:
    assert model_source(name) == source


def test_what_is_on_this_machine_comes_first(home: Path) -> None:
    fetched = home / "models" / "smollm2-360m"
    assert model_source("smollm2-360m") == HubModel("HuggingFaceTB/SmolLM2-360M")
    fetched.mkdir(parents=True)
    assert model_source("smollm2-360m") == fetched
    (home / "org" / "name").mkdir(parents=True)
    assert model_source("org/name") == Path("org/name")


@pytest.mark.parametrize("name", ["smollm2-135m", "llama-65", "a/b/c", "../x", "/nowhere/at/all", "org/", ""])
def test_an_unknown_name_says_what_there_is(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder nor fetched"):
        model_source(name or "nobody")


@pytest.mark.parametrize(
    "url", ["https://user:secret@host/x", "https://host/x?token=1", "https://host/x#y", "https://", "http://h:x/"]
)
def test_a_url_that_is_no_folder_for_everybody(url: str) -> None:
    with pytest.raises(ModelError, match="is not"):
        model_source(url)
