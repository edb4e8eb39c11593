"""A port that nobody listens on."""

from __future__ import annotations

import atexit
import socket

_kept: list[socket.socket] = []


def kept() -> int:
    """How many ports this process keeps, and so descriptors."""
    return len(_kept)


def free_port() -> int:
    """For tests in which a rank has to host the store at an address the others know before.

    A socket that is bound to it and does not listen is in nobody's way who asks for this port (`SO_REUSEADDR`), but as
    long as this process lives the system gives it to nobody who asks for any.
    """
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", 0))
    _kept.append(one)
    atexit.register(one.close)
    return one.getsockname()[1]
