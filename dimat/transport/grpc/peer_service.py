"""What an agent answers to its neighbours: the two calls of `dimat.v1.Peer` over what it has published."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import grpc

from dimat.errors import RoundGone, UsageError
from dimat.messages import PROTOCOL_VERSION, Schema
from dimat.proto.v1 import peer_pb2
from dimat.transport.grpc import convert
from dimat.transport.grpc.errors import guarded
from dimat.transport.grpc.frames import frames
from dimat.transport.store import SnapshotStore

SERVICE = "dimat.v1.Peer"
MAX_HOLD_S = 30.0
"""The longest time that Describe is held open."""

Context = grpc.aio.ServicerContext[Any, Any]


class PeerService:
    """Answers from a store; `leave` lets held calls go when the agent closes."""

    def __init__(self, agent: int, session: str, schema: Schema, store: SnapshotStore, frame_bytes: int) -> None:
        self._agent = agent
        self._session = session
        self._schema = schema
        self._store = store
        self._frame_bytes = frame_bytes
        self._leaving = False

    def methods(self) -> Mapping[str, grpc.RpcMethodHandler[Any, Any]]:
        """The method handlers by name; Fetch's answers are bytes already."""
        return {
            "Describe": grpc.unary_unary_rpc_method_handler(
                guarded(self.describe),
                request_deserializer=peer_pb2.DescribeRequest.FromString,
                response_serializer=peer_pb2.Description.SerializeToString,
            ),
            "Fetch": grpc.unary_stream_rpc_method_handler(
                guarded(self.fetch), request_deserializer=peer_pb2.FetchRequest.FromString
            ),
        }

    def leave(self) -> None:
        """Answer every held call now; may be called from any thread."""
        self._leaving = True
        self._store.changes.bump()

    async def describe(self, request: peer_pb2.DescribeRequest, context: Context) -> peer_pb2.Description:
        """Note acknowledgements, hold until what is waited for is there, say what there is."""
        del context
        if not request.wait_s >= 0:
            raise UsageError(f"wait_s is {request.wait_s}, expected a number of seconds from 0")
        for read in request.acknowledged:
            self._store.acknowledge(request.reader, read.kind, read.round)
        if request.HasField("until"):
            await self._hold(request.until.kind, request.until.round, min(request.wait_s, MAX_HOLD_S))
        return peer_pb2.Description(
            agent=self._agent,
            session=self._session,
            schema=convert.to_proto(self._schema) if request.with_schema else None,
            newest=self._store.newest(),
            protocol=PROTOCOL_VERSION,
        )

    async def fetch(self, request: peer_pb2.FetchRequest, context: Context) -> None:
        """Write the frames of a payload, or its announcement alone to whoever has it already.

        It is held by this call even when its round is replaced meanwhile.
        """
        payload = self._store.get(request.kind, request.round if request.HasField("round") else None)
        if request.position > payload.num_bytes:
            raise RoundGone(
                f"agent {self._agent}'s {request.kind!r} of round {payload.header.round} ends at byte "
                f"{payload.num_bytes}, but byte {request.position} was asked for"
            )
        held = request.HasField("held") and request.held == payload.identity
        for frame in frames(payload, payload.num_bytes if held else request.position, self._frame_bytes):
            await context.write(frame)

    async def _hold(self, kind: str, round_: int, wait_s: float) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        # Changes happen in the training thread, events belong to the loop.
        unsubscribe = self._store.changes.subscribe(partial(loop.call_soon_threadsafe, changed.set))
        try:
            deadline = time.monotonic() + wait_s
            while not self._leaving and self._store.newest().get(kind, -1) < round_:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), remaining_s)
                except TimeoutError:
                    return
                changed.clear()
        finally:
            unsubscribe()
