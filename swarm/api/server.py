"""A gRPC server of ours: bounded, with health and reflection, on the loop that everything else runs on.

Services are registered by their descriptors, so that no generated stubs are needed. What a handler raises becomes a
status with its message; what is unexpected is logged and told as INTERNAL, without its text. Who does not take in what
he is sent is dropped, never waited for.

Errors: `UnreachableError` if it cannot listen, `UsageError` for a certificate that cannot be used.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ...errors import RefusedError, SwarmError, TrustError, UnreachableError, UsageError

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 << 10
MAX_CALLS = 256
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
)

SLOW_SECONDS = 10.0
"""How long one answer of a stream may take to be taken in: gRPC's own buffers have room for some."""

FAREWELL_SECONDS = 1.0

Handler = Callable[[Any, grpc.aio.ServicerContext], Any]
"""(request, context) -> the answer, or an asynchronous iterator of them."""


@contextlib.asynccontextmanager
async def serving(
    service: ServiceDescriptor,
    handlers: Mapping[str, Handler],
    place: str,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[int]:
    """Serves one service at HOST:PORT or `unix:PATH` for as long as the block lasts; the port, 0 for a socket."""
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers((_generic(service, handlers),))
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    names = (service.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    try:
        port = server.add_secure_port(place, credentials) if credentials else server.add_insecure_port(place)
    except RuntimeError as error:
        raise UnreachableError(f"the API cannot listen at {place}: {error}") from error
    await server.start()
    for name in ("", service.full_name):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield 0 if place.startswith("unix:") else port
    finally:
        await healthy.enter_graceful_shutdown()
        await server.stop(0.5)


def tls(certificate: Path, key: Path) -> grpc.ServerCredentials:
    """Credentials of a server, PEM. Raises `UsageError`."""
    try:
        return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    except (OSError, ValueError) as error:
        raise UsageError(f"the API's certificate and key cannot be read: {error}") from error


def _generic(service: ServiceDescriptor, handlers: Mapping[str, Handler]) -> grpc.GenericRpcHandler:
    methods = {}
    for method in service.methods:
        reads, writes = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        wrap = _streamed if method.server_streaming else _answered
        methods[method.name] = make(
            wrap(handlers[method.name]),
            request_deserializer=partial(_parsed, reads),
            response_serializer=writes.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, methods)


@dataclass(frozen=True, slots=True)
class _Malformed:
    """A request that could not be parsed: gRPC itself would tell of it as an unknown error."""

    wanted: str


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        return _Malformed(kind.DESCRIPTOR.name)


async def _check(request: Any, context: grpc.aio.ServicerContext) -> None:
    if isinstance(request, _Malformed):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"what came is no {request.wanted}")


def _answered(handler: Handler) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await _check(request, context)
        async with _told(context):
            return await handler(request, context)

    return answer


def _streamed(handler: Handler) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[None]]:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> None:
        await _check(request, context)
        try:
            async with _told(context), contextlib.aclosing(handler(request, context)) as answers:
                async for one in answers:
                    await _write(context, one)
        except _GoneError:
            return
        except _SlowError:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "you do not take in what is sent")

    return answer


class _SlowError(Exception):
    """The other side does not take in what it is sent."""


class _GoneError(Exception):
    """The other side has gone."""


async def _write(context: grpc.aio.ServicerContext, answer: Any) -> None:
    try:
        async with asyncio.timeout(SLOW_SECONDS):
            await context.write(answer)
    except TimeoutError:
        raise _SlowError from None
    except grpc.aio.InternalError:
        raise _GoneError from None


_CODES: Mapping[type[SwarmError], grpc.StatusCode] = {
    UsageError: grpc.StatusCode.FAILED_PRECONDITION,
    TrustError: grpc.StatusCode.UNAUTHENTICATED,
    UnreachableError: grpc.StatusCode.UNAVAILABLE,
    RefusedError: grpc.StatusCode.FAILED_PRECONDITION,
}


@contextlib.asynccontextmanager
async def _told(context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
    try:
        yield
    except SwarmError as error:
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), grpc.StatusCode.ABORTED)
        await context.abort(code, str(error))
    except (grpc.aio.AbortError, grpc.RpcError, _SlowError, _GoneError):
        raise
    except Exception:
        logger.exception("a call of the API failed")
        await context.abort(grpc.StatusCode.INTERNAL, "the call failed; the log says why")
