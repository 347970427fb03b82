"""The coordinator's gRPC API: who may do what, and what malformed or oversize calls come to."""

import asyncio
import contextlib
import datetime
import hashlib
import ipaddress
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from swarm_peer.errors import TrustError, UnreachableError, UsageError
from swarm_peer.protos import api_pb2 as pb
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import events
from swarm_peer.swarm.api import coordinator_service, server, token, watching
from swarm_peer.swarm.api.client import Client, channel_to, find_coordinator, token_of
from swarm_peer.swarm.api.commands import SERVICE
from swarm_peer.swarm.api.server import MAX_REQUEST_BYTES
from swarm_peer.swarm.api.token import load_or_create, token_path
from swarm_peer.swarm.chronicle import Chronicle
from swarm_peer.swarm.events import Kept
from swarm_peer.swarm.merge_patch import apply
from swarm_peer.swarm.run_view import view

from tests.processes import AT_LEISURE, Home, home
from tests.watched_run import beginning, stepped, told

RUN = "ab" * 32
READING = ("Status", "Watch")


class Helm:
    """Notes what it is told to do."""

    run_id = RUN

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    def pause(self) -> None:
        self.done.append(("pause",))

    def resume(self) -> None:
        self.done.append(("resume",))

    def drain(self, peer: str, why: str) -> None:
        if peer == "nobody":
            raise UsageError("nobody is not in this run now")
        self.done.append(("drain", peer, why))

    def ban(self, peer: str, why: str) -> None:
        self.done.append(("ban", peer, why))

    async def evaluate(self) -> Mapping[str, float]:
        self.done.append(("evaluate",))
        return {"version": 3, "loss": 4.0, "perplexity": 54.6, "bits_per_byte": 2.0, "tokens": 100}

    async def export(self, merge: bool, tell: Callable[[str], None]) -> Kept:
        self.done.append(("export", merge))
        if len([done for done in self.done if done[0] == "export"]) > 1:
            raise UsageError("an export is under way already")
        tell("got version 3 of 10")
        return Kept("adapter", 3, "/there", (("adapter.safetensors", 7, "00ff"),))


class Served:
    """A server on a loop of its own, as a coordinator's."""

    def __init__(self, helm: Helm, certified: tuple[Path, Path] | None = None) -> None:
        self.helm = helm
        self.chronicle: Chronicle = told(*beginning())
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._certified = certified
        self.place = ""
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main()), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with coordinator_service.serve_api(
            self.chronicle, self.helm, "127.0.0.1:0", self._certified
        ) as self.place:
            self._ready.set()
            await self._over.wait()

    def emit(self, event: events.Event) -> None:
        self._loop.call_soon_threadsafe(self.chronicle.emit, event)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_PEER_STATE", str(tmp_path))
    return tmp_path


@pytest.fixture
def served(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(token, "MAX_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(token, "FIRST_DELAY_SECONDS", 0.001)
    made = Served(Helm())
    yield made
    made.close()


@contextlib.contextmanager
def client(served: Served, shown: str = "") -> Iterator[Client]:
    with channel_to(served.place) as channel:
        yield Client(SERVICE, channel, shown)


def request_of(name: str) -> Any:
    return getattr(pb, f"{name}Request")()


def reflected(served: Served) -> dict[str, bool]:
    """Every method of our service as a stranger finds it, and whether it streams."""
    with channel_to(served.place) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) >= {SERVICE.full_name, "grpc.health.v1.Health"}
        service = DescriptorPool(database).FindServiceByName(SERVICE.full_name)
        return {method.name: bool(method.server_streaming) for method in service.methods}


def call(served: Served, name: str, data: bytes, *metadata: tuple[str, str], streams: bool = False) -> grpc.StatusCode:
    """Sends these bytes; the status that comes back."""
    with channel_to(served.place) as channel:
        make = channel.unary_stream if streams else channel.unary_unary
        method = make(f"/{SERVICE.full_name}/{name}", request_serializer=None, response_deserializer=None)
        try:
            answer = method(data, metadata=metadata, timeout=30)
            if streams:
                next(answer)
                answer.cancel()
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def test_every_method_without_and_with_a_wrong_token(served: Served) -> None:
    methods = reflected(served)
    assert set(methods) == {method.name for method in SERVICE.methods}
    assert set(methods) > set(READING)
    for name, streams in methods.items():
        due = grpc.StatusCode.OK if name in READING else grpc.StatusCode.UNAUTHENTICATED
        for metadata in (
            (),
            (("authorization", "Bearer wrong"),),
            (("authorization", ""),),
            (("authorization", load_or_create(RUN)),),
            (("authorization", "Basic " + load_or_create(RUN)),),
            (("authorization", "Bearer "), ("authorization", f"Bearer {load_or_create(RUN)}")),
        ):
            assert call(served, name, b"", *metadata, streams=streams) == due, (name, metadata)
    assert served.helm.done == []


def test_every_method_with_malformed_and_oversize_input(served: Served) -> None:
    right = ("authorization", f"Bearer {load_or_create(RUN)}")
    for name, streams in reflected(served).items():
        for data in (b"\xff\xff\xff\xff", b"\x0a\xff\x01x", b"\x07"):
            code = call(served, name, data, right, streams=streams)
            assert code == grpc.StatusCode.INVALID_ARGUMENT, (name, data, code)
        code = call(served, name, b"\x0a" + b"\x80" * 4 + b"x" * MAX_REQUEST_BYTES, right, streams=streams)
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, (name, code)
    assert call(served, "Explode", b"", right) == grpc.StatusCode.UNIMPLEMENTED
    assert served.helm.done == []
    with client(served) as reading:
        assert reading.call("Status", pb.StatusRequest()).phase == "training"


def test_the_organizer_does_what_he_may(served: Served) -> None:
    with client(served, load_or_create(RUN)) as ours:
        ours.call("Pause", pb.PauseRequest())
        ours.call("Resume", pb.ResumeRequest())
        ours.call("Drain", pb.DrainRequest(peer="peer2", why="bed time"))
        ours.call("Ban", pb.BanRequest(peer="peer3", why="it lies"))
        assert ours.call("Evaluate", pb.EvaluateRequest()).perplexity == 54.6
        *lines, last = ours.stream("Export", pb.ExportRequest(merge=True))
        assert [line.line for line in lines] == ["got version 3 of 10"]
        files = [(file.name, file.bytes, file.sha256) for file in last.exported.files]
        assert files == [("adapter.safetensors", 7, "00ff")]
        with pytest.raises(UsageError, match="under way already"):
            list(ours.stream("Export", pb.ExportRequest()))
        with pytest.raises(UsageError, match="nobody is not in this run now"):
            ours.call("Drain", pb.DrainRequest(peer="nobody"))
    assert served.helm.done == [
        ("pause",),
        ("resume",),
        ("drain", "peer2", "bed time"),
        ("ban", "peer3", "it lies"),
        ("evaluate",),
        ("export", True),
        ("export", False),
    ]
    with client(served, "wrong") as wrong, pytest.raises(TrustError, match="not this run's"):
        wrong.call("Pause", pb.PauseRequest())


def test_the_status_is_what_the_dashboard_shows(served: Served) -> None:
    with client(served) as reading:
        status = reading.call("Status", pb.StatusRequest())
    document = json.loads(status.document)
    assert document == json.loads(json.dumps(view(served.chronicle.state)))
    assert (status.run, status.step, status.steps, status.loss, status.heldout) == (RUN, 1, 10, 4.0, 5.0)
    assert [stage.slowest for stage in status.stages] == [False, True, False]
    assert {member.name: member.counted for member in status.members}["box 2"] == 3


def test_who_watches_is_told_what_changes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "TICK_SECONDS", 0.02)
    with client(served) as reading:
        changes = reading.stream("Watch", pb.WatchRequest())
        first = next(changes)
        assert first.whole
        document = json.loads(first.document)
        for step in (1, 2, 3):
            served.emit(stepped(step))
        while document["progress"]["step"] < 3:
            change = next(changes)
            assert not change.whole
            document = apply(document, json.loads(change.document))
        assert change.status.step == 4
        assert apply({}, document) == apply({}, json.loads(json.dumps(view(served.chronicle.state))))


def test_too_many_watchers_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_WATCHERS", 1)
    with client(served) as one, client(served) as two:
        first = one.stream("Watch", pb.WatchRequest())
        next(first)
        with pytest.raises(UsageError, match="watch already"):
            next(two.stream("Watch", pb.WatchRequest()))


def test_who_does_not_take_in_what_is_sent_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free while it still reads nothing, and others are told all the time."""
    monkeypatch.setattr(watching, "TICK_SECONDS", 0.005)
    monkeypatch.setattr(watching, "MAX_WATCHERS", 2)
    monkeypatch.setattr(server, "SLOW_SECONDS", 0.1)
    little = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    with grpc.insecure_channel(served.place, little) as channel, client(served) as reading, client(served) as third:
        slow = Client(SERVICE, channel).stream("Watch", pb.WatchRequest())
        assert next(slow).whole
        for told, _ in enumerate(reading.stream("Watch", pb.WatchRequest()), 1):
            served.emit(stepped(told))
            for number in range(20):
                served.emit(events.Banned(f"peer{number + 1}", f"{told}: " + "x" * 400))
            if told % 20 == 0:
                with contextlib.suppress(UsageError):
                    assert next(third.stream("Watch", pb.WatchRequest())).whole
                    break
            assert told < 5000
        with pytest.raises(UsageError, match="do not take in"):
            list(slow)


def test_a_tick_is_made_once_for_all_who_watch(state: Path) -> None:
    async def main() -> None:
        chronicle = told(*beginning())
        ticks = watching.Ticks(chronicle)
        making = asyncio.create_task(ticks.run())
        async with contextlib.aclosing(ticks.watch()) as one, contextlib.aclosing(ticks.watch()) as two:
            assert (await anext(one)).document == (await anext(two)).document
            for step in (1, 2):
                chronicle.emit(stepped(step))
                assert await anext(one) is await anext(two)
            # One that has missed a tick is told the difference to the newest, which is another one's two.
            document = json.loads(watching.to_json(ticks.document()))
            for step in (3, 4):
                chronicle.emit(stepped(step))
                await anext(one)
            document = apply(document, json.loads((await anext(two)).document))
            assert apply({}, document) == apply({}, json.loads(watching.to_json(ticks.document())))
        assert ticks.watchers == 0
        making.cancel()

    run(main())


def test_it_says_that_it_is_well(served: Served) -> None:
    with channel_to(served.place) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for name in ("", SERVICE.full_name):
            answer = check(health_pb2.HealthCheckRequest(service=name), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_token_is_its_owners_alone(state: Path) -> None:
    made = load_or_create(RUN)
    assert load_or_create(RUN) == made
    assert len(made) >= 40
    assert token_path(RUN).stat().st_mode & 0o777 == 0o600
    assert token_of(None, RUN) == made
    token_path(RUN).chmod(0o644)
    with pytest.raises(TrustError, match="can be read by others"):
        load_or_create(RUN)


def test_what_is_not_there_is_said(state: Path) -> None:
    with pytest.raises(UsageError, match="no coordinator with an API"):
        find_coordinator(None, None)
    with pytest.raises(UsageError, match="token is needed"):
        token_of(None, RUN)
    with channel_to("127.0.0.1:1") as channel, pytest.raises(UnreachableError):
        Client(SERVICE, channel).call("Status", pb.StatusRequest())


def test_with_a_certificate_it_speaks_tls(state: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a coordinator")])
    now = datetime.datetime(2026, 1, 1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, private = state / "cert.pem", state / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    served = Served(Helm(), (pem, private))
    try:
        with channel_to(served.place, pem) as channel:
            assert Client(SERVICE, channel).call("Status", pb.StatusRequest()).step == 1
        with channel_to(served.place) as channel, pytest.raises(UnreachableError):
            Client(SERVICE, channel).call("Status", pb.StatusRequest())
    finally:
        served.close()


MANIFEST = """
[model]
name = "tiny"
stages = 2
[train]
mode = "lora"
steps = 100000
batch = 2
microbatch = 1
[data]
texts = ["shakespeare"]
heldout = ["hamlet"]
sequence_length = 32
"""


def test_an_organizer_steers_a_real_run(tmp_path: Path) -> None:
    """A real coordinator and five peers: paused, measured, exported, gone on with; a peer leaves, another is banned."""
    with home() as place:
        swarm = place.swarm()
        try:
            swarm.start_coordinator(MANIFEST, "--http", "off", "--exports", str(place.folder / "exports"))
            _steer(place, swarm)
        finally:
            swarm.close()
            swarm.folder.leave()


def _steer(place: Home, swarm: Any) -> None:
    def command(*arguments: str) -> str:
        code, output = place.run("swarm-coordinator", *arguments)
        assert code == 0, output
        return output

    seen: list[dict[str, Any]] = []
    told: set[str] = set()

    def once(what: str) -> bool:
        return what not in told and not told.add(what)  # type: ignore[func-returns-value]

    for event in swarm.events(lambda: None):
        seen.append(event)
        kind = event["event"]
        if kind == "listening":
            for number in range(5):
                swarm.start_peer(number, event["run_id"], event["addresses"], *AT_LEISURE)
        elif kind == "stepped" and event["step"] == 3:
            assert "paused by the organizer" in command("pause")
        elif kind == "paused":
            assert "training" not in command("status").splitlines()[0]
            _export_and_measure(place, next(event for event in seen if event["event"] == "listening"))
            command("resume")
        elif kind == "resumed":
            crowded = [peer for peer in _peers(seen) if len(_of_stage(seen, _peers(seen)[peer])) == 3]
            command("drain", crowded[0][-8:], "--why", "bed time")
        elif kind == "left":
            assert event["why"] == "bed time"
            told.add("left")
        elif kind == "stepped" and "left" in told and once("ban"):
            gone = {event["peer"] for event in seen if event["event"] == "left"}
            command("ban", next(peer for peer in _peers(seen) if peer not in gone), "--why", "it lies")
        elif kind == "lost" and "ban" in told:
            assert event["why"] == "banned: it lies"
            break
    status = json.loads(command("status", "--json"))
    assert status["ledger"]["lost"] == status["ledger"]["duplicated"] == 0
    assert [peer["banned"] for peer in status["peers"].values() if peer["banned"]] == ["it lies"]
    code, output = place.run("swarm-coordinator", "drain", "nobody")
    assert (code, "no peer of this run is called" in output) == (2, True)


def _export_and_measure(place: Home, listening: dict[str, Any]) -> None:
    """Also while it is paused: the files are where the coordinator may write, and are what it says they are."""
    token = (Path(place.environment["SWARM_PEER_STATE"]) / "tokens" / listening["run_id"]).read_text(encoding="ascii")
    with channel_to(listening["api"]) as channel:
        ours = Client(SERVICE, channel, token)
        for number, merge in ((1, False), (2, True)):
            *lines, last = ours.stream("Export", pb.ExportRequest(merge=merge))
            assert any("got version" in line.line for line in lines)
            folder = Path(last.exported.folder)
            assert folder == place.folder / "exports" / listening["run_id"][:16] / f"{number:04}"
            told = {file.name: (file.bytes, file.sha256) for file in last.exported.files}
            assert ("model.safetensors" if merge else "adapter_model.safetensors") in told
            for path in folder.iterdir():
                content = path.read_bytes()
                assert told.pop(path.name) == (len(content), hashlib.sha256(content).hexdigest())
            assert not told
        kept = json.loads(ours.call("Status", pb.StatusRequest()).document)["kept"]
        assert [entry["what"] for entry in kept.values()] == ["adapter", "model"]
        assert 0 < ours.call("Evaluate", pb.EvaluateRequest()).loss < 20


def _peers(seen: list[dict[str, Any]]) -> dict[str, int]:
    return {event["peer"]: event["stage"] for event in seen if event["event"] == "ready"}


def _of_stage(seen: list[dict[str, Any]], stage: int) -> list[str]:
    return [peer for peer, at in _peers(seen).items() if at == stage]
