"""Invites: their one text, what is refused with which error, and the text, files and URLs that they come from."""

import base64
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from swarm_peer.errors import OrganizerError, StorageError, TrustError, UnreachableError, UsageError
from swarm_peer.peer.cli import main as peer_cli
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import invites
from swarm_peer.swarm.coordinator_cli import main as coordinator_cli
from swarm_peer.swarm.invites import (
    MAX_ADDRESSES,
    MAX_CHARACTERS,
    MAX_MODEL_CHARACTERS,
    MAX_SOURCE_BYTES,
    SCHEME,
    Invite,
    make_invite,
    read_invite,
    write_invite,
)
from swarm_peer.swarm.inviting import in_turn
from swarm_peer.swarm.keys import INVITE_DOMAIN, MANIFEST_DOMAIN, Identity, check_signed_manifest, sign_manifest

from tests.exact import exact_manifest, exact_swarm
from tests.range_server import RangeServer
from tests.tiny import ORGANIZER, tiny_manifest

RUN = "ab" * 32
PEERS = [Identity.from_seed(f"peer {number}") for number in range(3)]
STRANGER = Identity.from_seed("stranger")


def address(number: int, host: str = "203.0.113.7", port: int = 4001) -> str:
    return f"/ip4/{host}/tcp/{port}/p2p/{PEERS[number].peer_id}"


INVITE = Invite(RUN, ORGANIZER.public_hex, "llama-65b", (address(0), address(0, port=4002), address(1)))
TEXT = INVITE.signed(ORGANIZER)


def text_of(packed: bytes, signer: Identity = ORGANIZER, domain: str = INVITE_DOMAIN) -> str:
    """A text around any bytes, properly signed."""
    return SCHEME + base64.urlsafe_b64encode(packed + signer.sign(domain, packed)).decode().rstrip("=")


def fields_of(invite: Invite = INVITE) -> list[Any]:
    """What stands in an invite, to be spoilt."""
    data = base64.urlsafe_b64decode(invite.signed(ORGANIZER).removeprefix(SCHEME) + "==")
    fields: list[Any] = msgpack.unpackb(data[:-64])
    return fields


# ---- its text

hosts = st.from_regex(r"/(ip4/[0-9]{1,3}\.0\.0\.1|dns4/[a-z]{1,40}\.org)/tcp/[0-9]{1,5}", fullmatch=True)
addresses_of = st.lists(
    st.builds(lambda host, peer: f"{host}/p2p/{peer.peer_id}", hosts, st.sampled_from(PEERS)),
    min_size=1,
    max_size=MAX_ADDRESSES,
    unique=True,
)
models = st.from_regex(r"([A-Za-z0-9][!-~]{0,80})?", fullmatch=True)


@given(st.binary(min_size=32, max_size=32), models, addresses_of)
def test_an_invite_comes_back_from_its_text(run_id: bytes, model: str, addresses: list[str]) -> None:
    invite = Invite(run_id.hex(), ORGANIZER.public_hex, model, tuple(addresses))
    text = invite.signed(ORGANIZER)
    assert Invite.parse(text) == invite
    assert text.isascii()
    assert len(text) <= MAX_CHARACTERS


def test_an_invite_fits_into_a_small_code() -> None:
    """One coordinator at one address; what the ids and the signature take of it is 171 of its characters."""
    assert len(make_invite(ORGANIZER, RUN, "llama-65b", [address(0)])) < 300


positions = st.integers(0, len(TEXT) - 1)
alphabet = st.sampled_from("ABCxyz019-_=+/ %\n\0é")


@given(
    st.lists(st.tuples(positions, st.sampled_from(["put", "insert", "drop", "cut"]), alphabet), min_size=1, max_size=4)
)
@example([(len(TEXT) - 1, "put", "=")])
@example([(len(TEXT) - 1, "drop", "A")])
def test_a_changed_text_is_refused_with_a_typed_error(changes: Sequence[tuple[int, str, str]]) -> None:
    text = TEXT
    for place, what, character in changes:
        if what == "cut":
            text = text[:place]
        else:
            text = text[:place] + (character if what != "drop" else "") + text[place + (what != "insert") :]
    if text == TEXT:
        assert Invite.parse(text) == INVITE
    else:
        with pytest.raises((UsageError, TrustError)):
            Invite.parse(text)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_a_typed_error(data: bytes) -> None:
    with pytest.raises((UsageError, TrustError)):
        Invite.parse(text_of(data))
    with pytest.raises((UsageError, TrustError)):
        Invite.parse(SCHEME + base64.urlsafe_b64encode(data).decode().rstrip("="))


def test_every_changed_bit_breaks_the_form_or_the_signature() -> None:
    data = bytearray(base64.urlsafe_b64decode(TEXT.removeprefix(SCHEME) + "=="))
    for place in range(8 * len(data)):
        data[place // 8] ^= 1 << place % 8
        with pytest.raises((UsageError, TrustError)):
            Invite.parse(SCHEME + base64.urlsafe_b64encode(data).decode().rstrip("="))
        data[place // 8] ^= 1 << place % 8


def test_a_text_has_one_form() -> None:
    """The bits that base64 leaves over, padding and white space make no second text of one invite."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    one_more = Invite(RUN, ORGANIZER.public_hex, "llama-65bc", INVITE.addresses).signed(ORGANIZER)
    texts = [text for text in (TEXT, one_more) if len(text.removeprefix(SCHEME)) % 4]
    assert texts
    for text in texts:
        for wrong in (text[:-1] + letters[letters.index(text[-1]) ^ 1], text + "=", text + " ", text.replace("_", "/")):
            with pytest.raises(UsageError):
                Invite.parse(wrong if wrong != text else text + "/")


# ---- who has signed it


def test_a_forged_signature_is_refused() -> None:
    packed = msgpack.packb(fields_of())
    assert Invite.parse(text_of(packed)) == INVITE
    with pytest.raises(TrustError, match="the invite is not signed by key"):
        Invite.parse(text_of(packed, signer=STRANGER))
    with pytest.raises(TrustError):
        Invite.parse(text_of(packed, domain=MANIFEST_DOMAIN))
    with pytest.raises(TrustError):
        Invite.parse(SCHEME + base64.urlsafe_b64encode(packed + bytes(64)).decode().rstrip("="))
    with pytest.raises(TrustError, match="another organizer's key"):
        INVITE.signed(STRANGER)


def test_a_run_of_another_organizer_is_not_the_one_invited_to() -> None:
    manifest = tiny_manifest()
    signed = sign_manifest(ORGANIZER, manifest)
    proof = (signed.canonical, signed.signature, manifest.run_id)
    assert check_signed_manifest(*proof, ORGANIZER.public_hex) == manifest
    with pytest.raises(OrganizerError, match="ask whoever gave you the invite"):
        check_signed_manifest(*proof, STRANGER.public_hex)


def test_a_peer_that_another_has_invited_ends_at_once_and_the_run_goes_on() -> None:
    swarm = exact_swarm(exact_manifest())
    start, said = swarm.start_peer, list[str]()

    def start_peer(number: int, stage: int | None) -> None:
        start(number, stage)
        peer = swarm.peers[Identity.from_seed(f"peer {number}").peer_id]
        peer.organizer = STRANGER.public_hex if number == 6 else ORGANIZER.public_hex
        peer.tell = said.append if number == 6 else peer.tell

    swarm.start_peer = start_peer  # type: ignore[method-assign]
    swarm.wanted += (None,)
    report = run(swarm.run(), limit=300.0)
    assert report["ledger"]["lost"] == 0
    endings = {number: swarm.endings[Identity.from_seed(f"peer {number}").peer_id] for number in range(7)}
    assert endings.pop(6).startswith("OrganizerError: run ")
    assert set(endings.values()) == {"the run is finished"}
    assert said == []  # a trainer that it could not follow would be told of, and tried again


# ---- what cannot stand in one


def spoilt(change: Callable[[list[Any]], Any]) -> bytes:
    fields = fields_of()
    changed = change(fields)
    packed: bytes = msgpack.packb(fields if changed is None else changed)
    return packed


KEY = bytes.fromhex(PEERS[0].public_hex)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop(),
        lambda fields: fields.append(1),
        lambda fields: {"run": RUN},
        lambda fields: [],
        lambda fields: None if fields.__setitem__(1, RUN) is None else fields,
        lambda fields: [1, fields[1][:31], *fields[2:]],
        lambda fields: [1, fields[1], fields[2] + b"\0", *fields[3:]],
        lambda fields: [True, *fields[1:]],
        lambda fields: [*fields[:3], b"llama-65b", fields[4]],
        lambda fields: [*fields[:3], "../llama", fields[4]],
        lambda fields: [*fields[:3], "/etc", fields[4]],
        lambda fields: [*fields[:3], "two words", fields[4]],
        lambda fields: [*fields[:3], "llama\x1b[31m", fields[4]],
        lambda fields: [*fields[:3], "x" * (MAX_MODEL_CHARACTERS + 1), fields[4]],
        lambda fields: [*fields[:4], []],
        lambda fields: [*fields[:4], [[KEY, []]]],
        lambda fields: [*fields[:4], [[KEY[:31], ["/ip4/1.1.1.1/tcp/1"]]]],
        lambda fields: [*fields[:4], [[KEY, ["/ip4/1.1.1.1/tcp/1", 7]]]],
        lambda fields: [*fields[:4], [[KEY, ["no multiaddr"]]]],
        lambda fields: [*fields[:4], [[KEY, ["/ip4/1.1.1.1/tcp/1; rm -rf ~"]]]],
        lambda fields: [*fields[:4], [[KEY, [""]]]],
        lambda fields: [*fields[:4], [[KEY, ["/ip4/" + "1" * 250]]]],
        lambda fields: [*fields[:4], [[KEY, ["/ip4/1.1.1.1/tcp/1"] * 2]]],
        lambda fields: [*fields[:4], [[KEY, ["/ip4/1.1.1.1/tcp/1"]], [KEY, ["/ip4/1.1.1.1/tcp/2"]]]],
        lambda fields: [*fields[:4], [[KEY, [f"/ip4/1.1.1.1/tcp/{port}" for port in range(MAX_ADDRESSES + 1)]]]],
        lambda fields: [*fields[:4], [[KEY, ["/ip4/1.1.1.1/tcp/1"], 1]]],
        lambda fields: [*fields[:4], msgpack.ExtType(5, b"")],
        lambda fields: [*fields[:4], msgpack.Timestamp(1)],
    ],
)
def test_what_is_signed_but_malformed_is_refused(change: Callable[[list[Any]], Any]) -> None:
    with pytest.raises(UsageError, match="this is no invite"):
        Invite.parse(text_of(spoilt(change)))


@pytest.mark.parametrize(
    "packed",
    [
        b"\x91" * 1000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        msgpack.packb(fields_of()) + b"\0",
        msgpack.packb(fields_of())[:-1],
        msgpack.packb(fields_of()).replace(b"\x95\x01", b"\x95\xcc\x01", 1),
    ],
)
def test_what_is_signed_but_another_byte_form_is_refused(packed: bytes) -> None:
    with pytest.raises(UsageError, match="this is no invite"):
        Invite.parse(text_of(packed))


def test_a_later_version_says_so() -> None:
    with pytest.raises(UsageError, match="version 2, not 1"):
        Invite.parse(text_of(msgpack.packb([2, "whatever"])))


def test_no_size_is_trusted() -> None:
    with pytest.raises(UsageError, match=f"the limit is {MAX_CHARACTERS}"):
        Invite.parse(SCHEME + "A" * MAX_CHARACTERS)
    hosts = [f"{'x' * 60}{number}.example" for number in range(MAX_ADDRESSES)]
    long = tuple(f"/dns4/{host}.{host}/tcp/4001/p2p/{PEERS[0].peer_id}" for host in hosts)
    with pytest.raises(UsageError, match="name fewer addresses"):
        Invite(RUN, ORGANIZER.public_hex, "m" * MAX_MODEL_CHARACTERS, long).signed(ORGANIZER)
    with pytest.raises(UsageError, match="9 addresses"):
        replace(INVITE, addresses=tuple(address(0, port=port) for port in range(9)))


# ---- what is put into one


def test_as_many_addresses_stand_in_it_as_fit() -> None:
    many = [address(0, port=port) for port in range(1, 40)]
    assert Invite.parse(make_invite(ORGANIZER, RUN, "", many)).addresses == tuple(many[:MAX_ADDRESSES])
    host = "x" * 180
    long = [f"/dns4/{host}/tcp/{port}/p2p/{PEERS[0].peer_id}" for port in range(10)]
    text = make_invite(ORGANIZER, RUN, "m" * MAX_MODEL_CHARACTERS, long)
    invite = Invite.parse(text)
    assert 1 < len(invite.addresses) < MAX_ADDRESSES
    assert invite.addresses == tuple(long[: len(invite.addresses)])
    assert len(text) <= MAX_CHARACTERS


def test_what_nobody_else_can_use_is_left_out() -> None:
    here, there = address(0, host="127.0.0.1"), address(0)
    assert Invite.parse(make_invite(ORGANIZER, RUN, "tiny", [here, there, there])).addresses == (there,)
    assert Invite.parse(make_invite(ORGANIZER, RUN, "tiny", [here])).addresses == (here,)
    assert Invite.parse(make_invite(ORGANIZER, RUN, "/home/me/model", ["nonsense", there])) == Invite(
        RUN, ORGANIZER.public_hex, "", (there,)
    )
    with pytest.raises(UsageError):
        make_invite(ORGANIZER, RUN, "tiny", ["/ip4/1.1.1.1/tcp/1"])


def test_nodes_take_turns() -> None:
    assert in_turn([["a1", "a2", "a3"], [], ["b1"], ["c1", "c2"]]) == ["a1", "b1", "c1", "a2", "c2", "a3"]


# ---- where it comes from


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RangeServer]:
    with RangeServer(tmp_path) as server:
        yield server


def test_it_is_read_from_text_file_and_url(tmp_path: Path, served: RangeServer) -> None:
    write_invite(tmp_path / "invite", TEXT)
    assert (tmp_path / "invite").read_text(encoding="ascii") == TEXT + "\n"
    assert (tmp_path / "invite").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["invite"]
    (tmp_path / "spaced").write_text(f"\n  {TEXT}\r\n\n", encoding="ascii")
    for source in (TEXT, TEXT + "\n", str(tmp_path / "invite"), str(tmp_path / "spaced"), served.url + "invite"):
        assert read_invite(source) == INVITE
    write_invite(tmp_path / "invite", replace(INVITE, model="").signed(ORGANIZER))
    assert read_invite(str(tmp_path / "invite")).model == ""


def test_what_holds_none_is_named(tmp_path: Path, served: RangeServer) -> None:
    (tmp_path / "forged").write_text(text_of(msgpack.packb(fields_of()), STRANGER), encoding="ascii")
    (tmp_path / "large").write_text(TEXT + " " * MAX_SOURCE_BYTES, encoding="ascii")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for folder in (f"{tmp_path}/", served.url):
        with pytest.raises(TrustError, match=f"^{folder}forged: the invite is not signed"):
            read_invite(f"{folder}forged")
        for name, why in (("large", "more than 8192 bytes"), ("binary", "not plain text")):
            with pytest.raises(UsageError, match=f"^{folder}{name}: .*{why}"):
                read_invite(f"{folder}{name}")
    for source in ("", "nowhere", "x" * 5000, "a\0b", str(tmp_path), "ftp://host/invite"):
        with pytest.raises(UsageError, match="or a file or http"):
            read_invite(source)
    with pytest.raises(UnreachableError, match="answered 404"):
        read_invite(served.url + "nowhere")
    with pytest.raises(UsageError, match="is no URL"):
        read_invite("http://host:port/")
    with pytest.raises(StorageError, match="cannot be written"):
        write_invite(tmp_path / "no" / "folder", TEXT)


def test_a_url_that_nobody_answers_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invites, "SOURCE_SECONDS", 0.2)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/invite"
        with pytest.raises(UnreachableError, match="cannot be read"):
            read_invite(url)
    with pytest.raises(UnreachableError, match="cannot be read"):
        read_invite(url)


def test_a_server_that_sends_without_end_is_cut_off(tmp_path: Path, served: RangeServer) -> None:
    (tmp_path / "endless").write_bytes(b" " * (64 << 20))
    with pytest.raises(UsageError, match="more than 8192 bytes"):
        read_invite(served.url + "endless")
    assert served.requests[-1].path == "endless"


# ---- on the command line


@pytest.mark.parametrize("flags", [["--run", RUN], ["--initial-peers", address(0)]])
def test_an_invite_and_flags_that_say_where_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert peer_cli(["join", TEXT, *flags]) == 2
    assert "an invite names the run and its addresses" in capsys.readouterr().err


def test_flags_of_the_environment_and_the_file_stand_beside_an_invite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags with several values, which come from there, do not swallow it; and a run named there is a conflict."""
    monkeypatch.setenv("SWARM_PEER_CONFIG", str(tmp_path))
    monkeypatch.setenv("SWARM_PEER_JOIN_ANNOUNCE", '["/ip4/1.1.1.1/tcp/1"]')
    (tmp_path / "swarm-peer.toml").write_text('[join]\nlisten = ["/ip4/0.0.0.0/tcp/1"]\nmemory = "1GB"\n')
    assert peer_cli(["join", "no-such-file"]) == 2
    assert "'no-such-file' is no invite" in capsys.readouterr().err
    (tmp_path / "swarm-peer.toml").write_text(f'[join]\nrun = "{RUN}"\n')
    assert peer_cli(["join", TEXT]) == 2
    assert "swarm-peer config join" in capsys.readouterr().err


def test_only_the_organizer_can_invite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = str(tmp_path / "none.key")
    assert coordinator_cli(["invite", "--organizer-key", key]) == 2
    assert "may invite to it" in capsys.readouterr().err
    standby = ["start", "--standby", "--run", RUN, "--initial-peers", address(0), "--organizer-key", key]
    assert coordinator_cli([*standby, "--invite", str(tmp_path / "invite")]) == 2
    assert "--invite needs the organizer's key" in capsys.readouterr().err
