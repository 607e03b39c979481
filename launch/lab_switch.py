"""A network switch in user space that delays and loses frames, for kernels without `tc netem`.

Each port is a TAP device: what a host sends comes out of the device's file, what is written into it arrives at the
host. In between lies a queue by due time. These are real Ethernet frames under the kernel's own TCP, so a lost one is
retransmitted, windows shrink and timers back off as they do on a long line; a relay of TCP streams would hide all that.

    python launch/lab_switch.py --ports p0 p1 --delay-ms 50 --loss-percent 1 --control /tmp/switch.socket

It prints `ready` when the ports are there; they go when it ends (SIGTERM). A datagram to the control socket is an
order: `cut` drops every frame from now on, `cut 0` those of port 0 alone, `heal` ends both, `counts PATH` writes what
passed as JSON. What is lost is drawn from `--seed`. `launch/lab.sh` builds the hosts around it.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import json
import os
import random
import selectors
import signal
import socket
import struct
import time
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
MAX_FRAME_BYTES = 2048
MAX_QUEUED = 20_000
"""Frames on their way; more are dropped, as by a router whose buffer is full. 30 MB at most."""
BURST = 64
"""Frames taken from one port before the others and the queue have their turn."""


class Switch:
    """Frames from port to port, late or never.

    Args:
        ports: the open files of the ports.
        delay_s: how long each frame is on its way, in one direction.
        loss: share of frames that are lost, 0 to 1, in each direction.
        seed: of what is lost.
    """

    def __init__(self, ports: list[int], delay_s: float, loss: float, seed: int) -> None:
        self.cut: set[int] = set()
        self.counts = {"frames": 0, "bytes": 0, "lost": 0, "cut": 0, "overflowed": 0}
        self._ports = ports
        self._delay_s = delay_s
        self._loss = loss
        self._chance = random.Random(seed)
        self._queue: list[tuple[float, int, int, bytes]] = []
        self._sequence = 0
        self._homes: dict[bytes, int] = {}

    def take(self, source: int, frame: bytes, now: float) -> None:
        """A frame came in at port `source`: lose it, or queue it for the ports that it is for."""
        self._homes[frame[6:12]] = source
        home = self._homes.get(frame[:6])
        everybody = [port for port in range(len(self._ports)) if port != source]
        for target in everybody if home is None else [home] * (home != source):
            self.counts["frames"] += 1
            self.counts["bytes"] += len(frame)
            if {source, target} & self.cut:
                self.counts["cut"] += 1
            elif self._chance.random() < self._loss:
                self.counts["lost"] += 1
            elif len(self._queue) >= MAX_QUEUED:
                self.counts["overflowed"] += 1
            else:
                self._sequence += 1
                heapq.heappush(self._queue, (now + self._delay_s, self._sequence, target, frame))

    def due(self, now: float) -> list[tuple[int, bytes]]:
        """The frames that have arrived by `now`, in order, each with the file of its port."""
        arrived = []
        while self._queue and self._queue[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._queue)
            if target in self.cut:  # what was under way when the line was cut is lost with it
                self.counts["cut"] += 1
            else:
                arrived.append((self._ports[target], frame))
        return arrived

    def pause_s(self, now: float) -> float | None:
        """Seconds until the next frame arrives; None when none is under way."""
        return max(0.0, self._queue[0][0] - now) if self._queue else None

    def obey(self, order: str) -> None:
        """Carry out an order from the control socket."""
        word, *rest = order.split()
        if word == "cut":
            self.cut = {int(port) for port in rest} or set(range(len(self._ports)))
        elif word == "heal":
            self.cut = set()
        elif word == "counts":
            beside = Path(f"{rest[0]}.partial")
            beside.write_text(json.dumps(self.counts))
            beside.replace(rest[0])
        else:
            print(f"unknown order {order!r}, expected cut, heal or counts", flush=True)


def open_tap(name: str) -> int:
    """Make a TAP device; it lives as long as its file is open, in whatever namespace it is moved to."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


def serve(switch: Switch, ports: list[int], control: socket.socket) -> None:
    """Move frames until SIGTERM."""
    over = False

    def end(number: int, frame: object) -> None:
        nonlocal over
        del number, frame
        over = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with selectors.DefaultSelector() as ready:
        for index, port in enumerate(ports):
            ready.register(port, selectors.EVENT_READ, index)
        ready.register(control, selectors.EVENT_READ, None)
        while not over:
            pause_s = switch.pause_s(time.monotonic())
            for key, _ in ready.select(1.0 if pause_s is None else min(1.0, pause_s)):
                if key.data is None:
                    switch.obey(control.recv(4096).decode())
                    continue
                for _ in range(BURST):
                    try:
                        frame = os.read(ports[key.data], MAX_FRAME_BYTES)
                    except (BlockingIOError, OSError):  # empty, or the host's interface is down
                        break
                    switch.take(key.data, frame, time.monotonic())
            for port, frame in switch.due(time.monotonic()):
                try:
                    os.write(port, frame)
                except OSError:  # the host's interface is down or its queue is full: a lost frame
                    switch.counts["overflowed"] += 1


def main() -> None:
    """Make the ports, say so, and serve."""
    parser = argparse.ArgumentParser(description="A switch in user space that delays and loses frames.")
    parser.add_argument("--ports", nargs="+", required=True, metavar="NAME", help="TAP devices to make")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of each frame, in one direction")
    parser.add_argument("--loss-percent", type=float, default=0.0, help="frames lost, in each direction")
    parser.add_argument("--seed", type=int, default=0, help="of what is lost")
    parser.add_argument("--control", required=True, metavar="PATH", help="socket that takes cut, heal, counts")
    options = parser.parse_args()
    ports = [open_tap(name) for name in options.ports]
    control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    control.bind(options.control)
    switch = Switch(ports, options.delay_ms / 1000, options.loss_percent / 100, options.seed)
    print("ready", flush=True)
    try:
        serve(switch, ports, control)
    finally:
        control.close()
        Path(options.control).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
