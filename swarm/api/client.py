"""Calls an API of ours from a command line: finds it, connects, and turns a status into an error in words.

Errors: `UnreachableError` if nobody answers, `UsageError` for what the other side will not do, `TrustError` for a wrong
token.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from ...errors import SwarmError, TrustError, UnreachableError, UsageError
from ...protos import api_pb2 as pb
from ..local_runs import LocalRun, local_runs
from .token import token_path

CALL_SECONDS = 3600.0
"""Longest that a call may take: an evaluation by a large swarm."""

MAX_ANSWER_BYTES = 256 << 20
"""The document of a run of many thousand peers is some megabytes."""


class Client:
    """One service at one address. `call("Status", request)` gives its answer, `stream` the answers of a stream."""

    def __init__(self, service: ServiceDescriptor, channel: grpc.Channel, token: str = "") -> None:
        self._service = service
        self._channel = channel
        self._metadata: Sequence[tuple[str, str]] = [("authorization", f"Bearer {token}")] if token else []

    def call(self, name: str, request: Any, seconds: float = CALL_SECONDS) -> Any:
        """The answer of a unary call."""
        with errors_in_words():
            return self._method(name)(request, metadata=self._metadata, timeout=seconds)

    def stream(self, name: str, request: Any) -> Iterator[Any]:
        """The answers of a stream, as they come."""
        with self.open(name, request) as call:
            yield from call

    @contextlib.contextmanager
    def open(self, name: str, request: Any) -> Iterator[Any]:
        """A stream to iterate over, which any thread may `cancel()`: it then ends without an error."""
        with errors_in_words():
            call = self._method(name)(request, metadata=self._metadata)
            try:
                yield call
            except grpc.RpcError as error:
                if not (error is call and error.code() is grpc.StatusCode.CANCELLED and call.cancelled()):
                    raise
            finally:
                call.cancel()

    def _method(self, name: str) -> Any:
        method = self._service.methods_by_name[name]
        make = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        return make(
            f"/{self._service.full_name}/{name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )


@contextlib.contextmanager
def errors_in_words() -> Iterator[None]:
    """Raises what a gRPC status means."""
    try:
        yield
    except grpc.RpcError as error:
        kinds: dict[grpc.StatusCode, type[SwarmError]] = {
            grpc.StatusCode.UNAVAILABLE: UnreachableError,
            grpc.StatusCode.UNAUTHENTICATED: TrustError,
        }
        kind = kinds.get(error.code(), UsageError)
        raise kind(error.details() or error.code().name) from None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an API is: HOST:PORT, the certificate of one that uses TLS, the id of its run if that is known."""

    address: str
    certificate: Path | None = None
    run_id: str = ""


def find_coordinator(api: str | None, run_id: str | None, *, changes: bool = False) -> Place:
    """The API that is meant: the one named, else that of a run on this machine, of whoever leads it.

    Raises `UsageError` if there is none, or, for a call that changes something, several runs and none was named.
    """
    if api:
        return Place(api, run_id=run_id or "")
    runs = [run for run in local_runs("") if run.api and run_id in (None, run.run_id)]
    if not runs:
        raise UsageError(
            "no coordinator with an API runs on this machine: name one with --api HOST:PORT (`swarm-coordinator start` "
            "prints it)"
        )
    names = dict.fromkeys(run.run_id for run in runs)
    if changes and len(names) > 1:
        raise UsageError(
            f"{len(names)} runs are led on this machine: say with --run which is meant: {', '.join(names)}"
        )
    found = [_place_of(run) for run in runs if run.run_id == runs[0].run_id]
    return next((place for place in found if len(found) == 1 or _leads(place)), found[0])


def _place_of(run: LocalRun) -> Place:
    return Place(run.api, Path(run.api_certificate) if run.api_certificate else None, run.run_id)


def _leads(place: Place) -> bool:
    """Whether it answers, and does not stand by."""
    service = pb.DESCRIPTOR.services_by_name["Coordinator"]
    try:
        with channel_to(place.address, place.certificate) as channel:
            phase: str = Client(service, channel).call("Status", pb.StatusRequest()).phase
    except SwarmError:
        return False
    return phase != "standby"


def token_of(path: Path | None, run_id: str) -> str:
    """The token in a file, or the one that a coordinator on this machine keeps of the run. Raises `UsageError`."""
    found = path or (token_path(run_id) if run_id else None)
    if found is None or not found.is_file():
        raise UsageError("the organizer's token is needed: name its file with --token (`start` prints where it is)")
    try:
        return found.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"the token in {found} cannot be read: {error}") from error


def channel_to(place: str, certificate: Path | None = None) -> grpc.Channel:
    """A channel to HOST:PORT or `unix:PATH`; with TLS if the server's certificate is given."""
    options = [("grpc.max_receive_message_length", MAX_ANSWER_BYTES)]
    if certificate is None:
        return grpc.insecure_channel(place, options)
    try:
        trusted = certificate.read_bytes()
    except OSError as error:
        raise UsageError(f"the certificate {certificate} cannot be read: {error.strerror or error}") from error
    return grpc.secure_channel(place, grpc.ssl_channel_credentials(trusted), options)
