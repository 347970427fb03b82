"""Calls an API of ours from a command line: finds it, connects, and turns a status into an error in words.

Errors: `UnreachableError` if nobody answers, `UsageError` for what the other side will not do, `TrustError` for a wrong
token.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from ...errors import SwarmError, TrustError, UnreachableError, UsageError
from ..local_runs import local_runs
from .token import token_path

CALL_SECONDS = 3600.0
"""Longest that a call may take: an export or evaluation of a large model."""


class Client:
    """One service at one address. `call("Status", request)` gives its answer, `stream` the answers of a stream."""

    def __init__(self, service: ServiceDescriptor, channel: grpc.Channel, token: str = "") -> None:
        self._service = service
        self._channel = channel
        self._metadata: Sequence[tuple[str, str]] = [("authorization", f"Bearer {token}")] if token else []

    def call(self, name: str, request: Any) -> Any:
        """The answer of a unary call."""
        with errors_in_words():
            return self._method(name)(request, metadata=self._metadata, timeout=CALL_SECONDS)

    def stream(self, name: str, request: Any) -> Iterator[Any]:
        """The answers of a stream, as they come."""
        with errors_in_words():
            yield from self._method(name)(request, metadata=self._metadata)

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


def find_coordinator(api: str | None, run_id: str | None) -> tuple[str, str]:
    """(HOST:PORT, run id) of the API that is meant: the one named, else that of a run on this machine."""
    if api:
        return api, run_id or ""
    runs = [run for run in local_runs("") if run.api and run_id in (None, run.run_id)]
    if not runs:
        raise UsageError(
            "no coordinator with an API runs on this machine: name one with --api HOST:PORT (`swarm-coordinator start` "
            "prints it)"
        )
    return runs[0].api, runs[0].run_id


def token_of(path: Path | None, run_id: str) -> str:
    """The token in a file, or the one that a coordinator on this machine keeps of the run. Raises `UsageError`."""
    found = path or (token_path(run_id) if run_id else None)
    if found is None or not found.is_file():
        raise UsageError("the organizer's token is needed: name its file with --token (`start` prints where it is)")
    return found.read_text(encoding="ascii").strip()


def channel_to(place: str, certificate: Path | None = None) -> grpc.Channel:
    """A channel to HOST:PORT or `unix:PATH`; with TLS if the server's certificate is given."""
    if certificate is None:
        return grpc.insecure_channel(place)
    return grpc.secure_channel(place, grpc.ssl_channel_credentials(certificate.read_bytes()))
