import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from swarm_peer.errors import ManifestError, TrustError
from swarm_peer.swarm.keys import (
    Delegation,
    Identity,
    ProvenTerms,
    SignedTerm,
    check_delegation,
    check_signed_manifest,
    check_term,
    delegate,
    peer_id_of,
    public_key_of,
    sign_manifest,
    sign_term,
    state_folder,
    verify,
)
from swarm_peer.swarm.manifest import DataSettings, LlamaShape, Manifest, ModelSettings, Settings

ORGANIZER = Identity.from_seed("organizer")
TRAINER = Identity.from_seed("trainer")


def make_manifest(organizer: Identity = ORGANIZER, nonce: str = "0" * 32) -> Manifest:
    return Manifest(
        settings=Settings(model=ModelSettings(name="tiny", stages=2), data=DataSettings(sequence_length=16)),
        shape=LlamaShape(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            vocab_size=256,
            max_position_embeddings=32,
            rms_norm_eps=1e-5,
            rope_theta=1e4,
            tie_word_embeddings=True,
        ),
        texts_sha256=("0" * 64,),
        heldout_sha256=("0" * 64,),
        organizer=organizer.public_hex,
        nonce=nonce,
    )


MANIFEST = make_manifest()
RUN = MANIFEST.run_id


def term_of(number: int, trainer: Identity = TRAINER, organizer: Identity = ORGANIZER, run: str = RUN) -> SignedTerm:
    return sign_term(trainer, run, number, delegate(organizer, run, trainer.public_hex))


def test_peer_id_is_libp2ps_text_form() -> None:
    # Computed independently from libp2p's peer id specification: base58(00 24 08 01 12 20 || 32 zero bytes).
    assert peer_id_of("00" * 32) == "12D3KooW9pNAk8aiBuGVQtWRdbkLmo5qVL3e2h5UxbN2Nz9ttwiw"
    identity = Identity.generate()
    assert public_key_of(identity.peer_id) == identity.public_hex
    assert identity.libp2p_private_key() == b"\x08\x01\x12\x40" + identity.private + bytes.fromhex(identity.public_hex)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Qmc5gCcjYypU7y28oCALwfSvxCBskLuPKWpK4qpterKC7z",  # an RSA key's
        "12D3KooW",
        TRAINER.peer_id + "\n",
        TRAINER.peer_id[:-1] + "0",
        TRAINER.peer_id[:-1] + "é",
        "1" * 52,
        "z" * 10_000_000,
    ],
)
def test_what_is_no_ed25519_peer_id_is_refused(text: str) -> None:
    with pytest.raises(TrustError):
        public_key_of(text)


@pytest.mark.parametrize("text", ["", "00", TRAINER.public_hex.upper(), " " + TRAINER.public_hex, "g" * 64])
def test_a_public_key_has_one_text_form(text: str) -> None:
    with pytest.raises(TrustError, match="64 lower-case hex"):
        peer_id_of(text)
    with pytest.raises(TrustError, match="64 lower-case hex"):
        verify(text, "a", b"data", TRAINER.sign("a", b"data"))


def test_signatures_bind_key_domain_and_data() -> None:
    signature = TRAINER.sign("a", b"data")
    verify(TRAINER.public_hex, "a", b"data", signature)
    for public_hex, domain, data in [
        (ORGANIZER.public_hex, "a", b"data"),
        (TRAINER.public_hex, "b", b"data"),
        (TRAINER.public_hex, "a", b"date"),
    ]:
        with pytest.raises(TrustError):
            verify(public_hex, domain, data, signature)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(64)):
        with pytest.raises(TrustError):
            verify(TRAINER.public_hex, "a", b"data", wrong)


def test_covered_bytes_are_these() -> None:
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(TRAINER.public_hex))
    public.verify(TRAINER.sign("a", b"data"), b"swarm-peer/1/a\0data")


def test_private_key_is_in_no_repr() -> None:
    assert TRAINER.private.hex() not in repr(TRAINER)
    assert repr(TRAINER.private) not in repr(TRAINER)


def test_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    old_mask = os.umask(0)
    try:
        made = Identity.load_or_create(path)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == made.private
    assert Identity.load_or_create(path) == made
    assert list(path.parent.iterdir()) == [path]


def test_key_file_of_another_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    theirs = Identity.generate()
    link = os.link

    def they_were_faster(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        target.write_bytes(theirs.private)
        target.chmod(0o600)
        link(source, target)

    monkeypatch.setattr(os, "link", they_were_faster)
    assert Identity.load_or_create(path) == theirs
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_key_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(TrustError, match="chmod 600"):
        Identity.load_or_create(path)


@pytest.mark.parametrize("content", [b"", b"short", bytes(33), bytes(1 << 20)])
def test_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(TrustError, match="32 bytes"):
        Identity.load_or_create(path)


def test_unusable_key_path_is_a_trust_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrustError):
        Identity.load_or_create(tmp_path)
    with pytest.raises(TrustError):
        Identity.load_or_create(tmp_path / "file" / "key")


def test_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWARM_PEER_STATE", str(tmp_path))
    assert state_folder() == tmp_path
    monkeypatch.delenv("SWARM_PEER_STATE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "swarm-peer"


def test_signed_manifest() -> None:
    signed = sign_manifest(ORGANIZER, MANIFEST)
    assert check_signed_manifest(signed.canonical, signed.signature, RUN) == MANIFEST
    assert check_signed_manifest(signed.canonical, signed.signature, None) == MANIFEST
    with pytest.raises(TrustError, match="not of run"):
        check_signed_manifest(signed.canonical, signed.signature, "0" * 64)
    with pytest.raises(TrustError, match="not signed"):
        check_signed_manifest(signed.canonical, bytes(64), None)
    with pytest.raises(ManifestError):
        check_signed_manifest(signed.canonical + b" ", signed.signature, None)
    with pytest.raises(TrustError, match="another organizer"):
        sign_manifest(TRAINER, MANIFEST)


def test_term_is_proven_by_both_signatures() -> None:
    term = term_of(3)
    check_term(MANIFEST, term)
    other_run = make_manifest(nonce="1" * 32).run_id
    forged = [
        replace(term, number=4),
        replace(term, trainer=ORGANIZER.public_hex),
        replace(term, trainer=term.trainer.upper()),
        replace(term, delegation=bytes(64)),
        replace(term, signature=bytes(64)),
        replace(term, signature=term.delegation, delegation=term.signature),
        term_of(3, organizer=TRAINER),
        term_of(3, run=other_run),
        replace(term, delegation=term_of(3, run=other_run).delegation),
    ]
    for wrong in forged:
        with pytest.raises(TrustError):
            check_term(MANIFEST, wrong)


def test_delegation_names_run_and_trainer() -> None:
    delegation = Delegation(RUN, TRAINER.public_hex, delegate(ORGANIZER, RUN, TRAINER.public_hex))
    check_delegation(MANIFEST, delegation)
    for wrong in (
        replace(delegation, run="0" * 64),
        replace(delegation, trainer=ORGANIZER.public_hex),
        replace(delegation, signature=bytes(64)),
    ):
        with pytest.raises(TrustError):
            check_delegation(MANIFEST, wrong)


def test_proven_terms_remembers_what_passed_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[int] = []

    def counted(manifest: Manifest, term: SignedTerm) -> None:
        checks.append(term.number)
        check_term(manifest, term)

    monkeypatch.setattr("swarm_peer.swarm.keys.check_term", counted)
    proven = ProvenTerms(MANIFEST, limit=2)
    terms = [term_of(number) for number in range(3)]
    forged = replace(terms[0], signature=bytes(64))
    for _ in range(2):
        with pytest.raises(TrustError):
            proven.check(forged)
    assert checks == [0, 0]
    for number in (0, 0, 1, 1, 2, 1, 0):
        proven.check(terms[number])
    assert checks == [0, 0, 0, 1, 2, 0]
