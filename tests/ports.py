"""A port that nobody listens on."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Free a moment ago: for tests in which a rank has to host the store at an address the others know before."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
