"""Messages that are waited for at once. A small one is carried without a flight, as long as all goes well."""

from __future__ import annotations

from torch import Tensor

from parallel_topology.communicators.channel import Channel
from parallel_topology.communicators.flight import Flight, Receipt, received, sent
from parallel_topology.wire.frames import INLINE, Kind


def send_now(channel: Channel, tensor: Tensor) -> None:
    """Send a tensor and wait: what `Flight` does, without one where all is one piece and nothing else is under way."""
    nbytes = tensor.nbytes
    if nbytes > INLINE or channel.under_way:
        sent(channel, Kind.TENSOR, tensor).ticket().wait()
        return
    piece = channel.pieces.take()
    with channel.lock:
        number = channel.next()
        work = channel.send_first(piece.filled(channel.header(number, tensor), tensor, nbytes))
    try:
        channel.wait(work, channel.links.timeout)
    except RuntimeError:
        raise
    except BaseException:  # a signal's handler has raised; it may still be on its way
        _leave(Flight(channel, channel.frame(Kind.TENSOR, number, tensor), tensor, piece, work), channel)
        raise
    channel.pieces.put_back(piece, work)


def recv_now(channel: Channel, tensor: Tensor) -> None:
    """Receive a tensor and wait: what `Receipt` does, without one where what comes is one piece, and as expected."""
    nbytes = tensor.nbytes
    if nbytes > INLINE or channel.under_way:
        received(channel, Kind.TENSOR, into=tensor).ticket().wait()
        return
    piece = channel.pieces.take()
    with channel.lock:
        number = channel.next()
        header = channel.header(number, tensor)
        work = channel.recv_first(piece.whole)
    try:
        channel.wait(work, channel.links.timeout)
    except RuntimeError:
        raise
    except BaseException:  # a signal's handler has raised; it may still come
        _leave(Receipt(channel, channel.frame(Kind.TENSOR, number, tensor), piece, work, into=tensor), channel)
        raise
    if piece.memory.startswith(header):
        piece.copy_into(tensor, nbytes)
        channel.pieces.put_back(piece, work)
    else:
        Receipt(channel, channel.frame(Kind.TENSOR, number, tensor), piece, into=tensor).wait()


def _leave(flight: Flight, channel: Channel) -> None:
    """Hold a message whose wait was interrupted, as one whose handle was dropped."""
    flight.ticket()
    with channel.lock:
        channel.under_way.appendleft(flight)  # what else is there was begun later
