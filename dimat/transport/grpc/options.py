"""gRPC settings that both ends must agree on, in one place.

Keepalive finds dead connections while an agent trains for minutes and nothing is said. A server answers pings that come
more often than it allows with «too_many_pings» and hangs up, so what the client does and what the server allows are
set together.
"""

from __future__ import annotations

from dimat.messages import Schema

Options = tuple[tuple[str, int], ...]

HANDSHAKE_S = 20
"""A connection on which no handshake is done by then is closed: it costs a socket, and says nothing."""
MAX_STREAMS = 256
"""Calls that one connection may carry at once; further ones wait at the caller's."""

KEEPALIVE_S = 20
KEEPALIVE_TIMEOUT_S = 10
MIN_FRAME_BYTES = 1 << 10
MAX_FRAME_BYTES = 4_000_000
"""gRPC's own limit for a message is 4 MiB; a frame with its prefix stays below it."""
FRAME_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 4 << 20
"""A frame fits; an announcement has room for its own schema on top."""

_BOTH: Options = (
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

SERVER: Options = (
    *_BOTH,
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_S * 1000 // 2),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.so_reuseport", 0),  # on by default on Linux: two servers would share one port in silence
)


def client(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Settings of a channel that refuses messages above `max_message_bytes`.

    A server that was restarted is found again within a second: the default backoff grows to two minutes.
    """
    return (
        *_BOTH,
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.enable_http_proxy", 0),  # a proxy for the web is no way to a neighbour
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    )


def max_message_bytes(schema: Schema) -> int:
    """What an announcement of one's own schema can take; a peer cannot make the reader take in a larger message."""
    described = sum(2 * len(spec.name) + 10 * len(spec.shape) + 64 for spec in schema.tensors)
    return MAX_MESSAGE_BYTES + described
