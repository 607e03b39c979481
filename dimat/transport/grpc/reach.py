"""Whether anybody listens at an address, before anything is written that supposes so."""

from __future__ import annotations

import grpc

from dimat.errors import NoCoordinator


def await_coordinator(address: str, timeout_s: float) -> None:
    """Dial the coordinator until it answers.

    Raises:
        NoCoordinator: it did not within `timeout_s` seconds.
    """
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            raise NoCoordinator(
                f"no coordinator at {address} after {timeout_s:.0f} s",
                hint="is it running, and is this its address? `dimat coordinator CONFIG` starts one",
            ) from None
