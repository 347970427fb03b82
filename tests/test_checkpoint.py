"""One checkpoint from a folder, a URL and the Hub: the same numbers, and only the bytes of a stage."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from swarm_peer.errors import ManifestError, ModelError, StoppedError
from swarm_peer.peer.hosting import Hosting
from swarm_peer.swarm.freezing import prepare, take_up
from swarm_peer.swarm.manifest import DataSettings, LimitSettings, ModelSettings, Settings, Weights
from swarm_peer.swarm.model.checkpoint import Checkpoint
from swarm_peer.swarm.model.files import FolderFiles
from swarm_peer.swarm.model.names import stage_pieces
from swarm_peer.swarm.model.opening import open_checkpoint
from swarm_peer.swarm.sources import cache_folder
from swarm_peer.swarm.torch_backend import TorchBackend

from .checkpoints import INDEX, SHARDS, run_of, write_checkpoint
from .range_server import RangeServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "some-org/some.model"


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_PEER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("HF_TOKEN", "HF_ENDPOINT", "SWARM_PEER_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "site" / "llama")
    return tmp_path / "site" / "llama"


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder.parent) as server:
        yield server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RangeServer, RangeServer]]:
    """As the Hub answers: the first server names the commit, and sends whoever wants safetensors to the second."""
    write_checkpoint(tmp_path / "hub" / REPO / "resolve" / COMMIT)
    (tmp_path / "hub" / REPO / "resolve" / "main").symlink_to(COMMIT)
    with RangeServer(tmp_path / "hub") as front, RangeServer(tmp_path / "hub") as store:
        front.redirect, front.commit = store.url, COMMIT
        monkeypatch.setenv("HF_ENDPOINT", front.url)
        yield front, store


def opened(model: str) -> Checkpoint:
    checkpoint = open_checkpoint(model)
    assert checkpoint is not None
    return checkpoint


def local_weights(folder: Path) -> Weights:
    return Checkpoint(FolderFiles(folder)).weights()


def build(model: str, weights: Weights, stage: int) -> TorchBackend:
    backend = Hosting(model).backend(run_of(weights), stage, device="cpu")
    assert isinstance(backend, TorchBackend)
    return backend


def same_base(one: TorchBackend, other: TorchBackend) -> bool:
    assert one._base.keys() == other._base.keys()
    return all(torch.equal(tensor, other._base[name]) for name, tensor in one._base.items())


def headers_of(folder: Path) -> int:
    """Bytes of everything but tensors."""
    small = sum((folder / name).stat().st_size for name in ("config.json", INDEX))
    return small + sum(8 + int.from_bytes((folder / file).read_bytes()[:8], "little") for file in SHARDS)


def test_a_stage_of_a_url_reads_its_own_bytes_and_is_the_same(folder: Path, server: RangeServer) -> None:
    weights, url = local_weights(folder), server.url + "llama"
    remote = build(url, weights, 1)
    tensors = Checkpoint(FolderFiles(folder)).tensors
    entries = [tensors[name].at.entry for piece in stage_pieces(run_of(weights), 1) for name in piece.shapes]
    exact = sum(entry.stop - entry.start for entry in entries)
    assert exact <= server.bytes_served - headers_of(folder) < 1.02 * exact
    assert exact < 0.4 * sum((folder / file).stat().st_size for file in SHARDS)
    assert same_base(remote, build(str(folder), weights, 1))


def test_what_is_in_the_cache_is_not_read_again(folder: Path, server: RangeServer) -> None:
    weights, url = local_weights(folder), server.url + "llama/"
    first = build(url, weights, 2)
    before = server.bytes_served
    again = build(url, weights, 2)
    assert server.bytes_served - before <= headers_of(folder)
    assert same_base(first, again)


def test_a_reading_that_ended_goes_on_where_it_was(folder: Path, server: RangeServer) -> None:
    weights, url = local_weights(folder), server.url + "llama/"
    run = run_of(weights)

    def end(done: int, total: int) -> None:
        if done > total / 2:
            raise StoppedError("enough")

    with pytest.raises(StoppedError):
        Hosting(url, progress=end).backend(run, 0, device="cpu")
    half = server.bytes_served
    steps: list[tuple[int, int]] = []
    Hosting(url, progress=lambda done, total: steps.append((done, total))).backend(run, 0, device="cpu")
    total = steps[-1][1]
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert server.bytes_served - half < 0.6 * total + headers_of(folder)


def test_a_url_has_the_headers_of_the_folder_and_a_revision(folder: Path, server: RangeServer) -> None:
    with opened(server.url + "llama") as checkpoint:
        weights = checkpoint.weights()
    assert weights.headers == local_weights(folder).headers
    assert weights.pieces == ()
    assert weights.revision.startswith(server.url + "llama/@")
    assert server.bytes_served <= headers_of(folder) + 8, "and a first look at the index"


def test_a_url_whose_files_are_others_now_is_refused(folder: Path, server: RangeServer) -> None:
    url = server.url + "llama"
    with opened(url) as checkpoint:
        weights = checkpoint.weights()
    assert same_base(build(url, weights, 1), build(str(folder), weights, 1))
    write_checkpoint(folder, seed=1)
    with pytest.raises(ModelError, match="not those that the run was started with"):
        build(url, weights, 2)


def test_wrong_bytes_are_refused_by_piece_and_not_kept(folder: Path, server: RangeServer) -> None:
    weights = local_weights(folder)
    write_checkpoint(folder, seed=1)
    with pytest.raises(ModelError, match=r"layer 2 has digest [0-9a-f]{64}; the run wants"):
        build(server.url + "llama", weights, 1)
    kept = sum(path.stat().st_size for path in (cache_folder() / "weights").iterdir())
    assert kept < headers_of(folder), "headers, and no tensor"


def test_the_hub_is_read_at_one_commit_and_its_token_goes_nowhere_else(
    hub: tuple[RangeServer, RangeServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with opened(REPO) as checkpoint:
        weights = checkpoint.weights()
    assert weights.revision == f"{REPO}@{COMMIT}"
    folder = tmp_path / "hub" / REPO / "resolve" / COMMIT
    (folder.parent / "main").unlink()  # the branch moves on
    assert same_base(build(REPO, weights, 0), build(str(folder), weights, 0))
    front, store = hub
    assert {request.authorization for request in front.requests} == {"Bearer hf_secret"}
    assert {request.authorization for request in store.requests} == {None}
    assert front.served[SHARDS[0]] == 0 < store.served[SHARDS[0]]


def test_a_repository_that_was_renamed_is_pinned_as_well(hub: tuple[RangeServer, RangeServer]) -> None:
    hub[0].moved = ("old-org/model", REPO)
    with opened("old-org/model") as checkpoint:
        weights = checkpoint.weights()
    assert weights.revision == f"old-org/model@{COMMIT}"
    assert hub[0].requests[-1].path.startswith(f"{REPO}/resolve/{COMMIT}/")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_what_to_do(hub: tuple[RangeServer, RangeServer], status: int) -> None:
    hub[0].statuses["config.json"] = [status]
    with pytest.raises(ModelError, match=rf"licence must be accepted first, at {hub[0].url}{REPO}; then set HF_TOKEN"):
        open_checkpoint(REPO)


def test_a_token_that_is_none_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_se\ncret")
    with pytest.raises(ModelError, match="HF_TOKEN") as caught:
        open_checkpoint(REPO)
    assert "cret" not in str(caught.value)


def test_an_organizer_freezes_and_takes_up_a_remote_model(
    hub: tuple[RangeServer, RangeServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    text, heldout = tmp_path / "text", tmp_path / "heldout"
    text.write_text("ab ba " * 200)
    heldout.write_text("ba ab " * 200)
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel({"ab": 0, "ba": 1}, unk_token="ab"))
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    vocabulary.save(str(tmp_path / "hub" / REPO / "resolve" / COMMIT / "tokenizer.json"))
    settings = Settings(
        model=ModelSettings(name=REPO),
        data=DataSettings(texts=(str(text),), heldout=(str(heldout),), sequence_length=16, heldout_tokens=64),
    )
    prepared = prepare(settings, organizer="0" * 64, nonce="0" * 32)
    assert prepared.folder is None
    assert prepared.manifest.weights is not None
    assert prepared.manifest.tokenizer_sha256 is not None
    assert take_up(prepared.manifest).samples().microbatch(0, 0) == prepared.samples().microbatch(0, 0)
    assert [path.name for path in (tmp_path / "home" / "tokenizers").glob("*/*")] == ["tokenizer.json"]
    for allowed, codec in ((100, "int8"), (3000, "fp32")):
        few = settings.model_copy(update={"limits": LimitSettings(payload_bytes=allowed)})
        with pytest.raises(
            ManifestError, match=rf"between two stages, in {codec}; limits.payload_bytes is {allowed:,}:"
        ):
            prepare(few, organizer="0" * 64, nonce="0" * 32)
