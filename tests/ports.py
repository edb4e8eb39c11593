"""A port that nobody listens on."""

from __future__ import annotations

import atexit
import socket


def free_port() -> int:
    """For tests in which a rank has to host the store at an address the others know before.

    A socket that is bound to it and does not listen is in nobody's way who asks for this port (`SO_REUSEADDR`), but as
    long as this process lives the system gives it to nobody who asks for any.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    atexit.register(kept.close)
    return kept.getsockname()[1]
