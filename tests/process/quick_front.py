"""The front with heartbeats that fail after one second, so that a test need not wait for half a minute."""

from __future__ import annotations

import os

import zmq

from nbsgl.engine import front

TIMEOUT_S = 1.0

if __name__ == "__main__":
    front.SOCKET_OPTIONS |= {zmq.HEARTBEAT_IVL: 100, zmq.HEARTBEAT_TIMEOUT: round(TIMEOUT_S * 1000)}
    front.PROBE_S = 0.2
    os._exit(front.main())
