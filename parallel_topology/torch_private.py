"""The only module that uses names torch keeps private or has renamed. Seen in torch 2.8, 2.13 and 2.14 (run).

`new_process_group` does by hand what `torch.distributed.distributed_c10d._new_process_group_helper` does, without the
default group and without torch's registry of groups by name.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from datetime import timedelta
from importlib import import_module
from typing import Any, Self, cast

import torch
import torch.distributed as dist

_gloo: Any = getattr(dist, "ProcessGroupGloo", None)
_nccl: Any = getattr(dist, "ProcessGroupNCCL", None)
_GroupClass: Any = dist.ProcessGroup
_c10d: Any = dist

Work: Any = _c10d.distributed_c10d.Work
"""An operation of torch's own under way."""

_AllgatherOptions: Any = _c10d.distributed_c10d.AllgatherOptions  # not exported beside the other options

is_transformed: Callable[[torch.Tensor], bool] = cast("Any", torch)._C._functorch.is_functorch_wrapped_tensor
"""Whether a tensor stands for another inside `torch.func.grad`, `vmap` and the like."""


_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))

GLOO_SCATTERS_SUMS: bool = _VERSION < (2, 13)
"""Whether gloo's reduce-scatter may take the sum whatever it is asked for: seen in torch 2.8, and not in 2.13."""

GLOO_TELLS: bool = _VERSION < (2, 13)
"""Whether gloo writes to stdout with whom each new group is connected: seen in torch 2.8 and 2.10, not in 2.13."""


@contextmanager
def ended_together(groups: Sequence[dist.ProcessGroup]) -> Generator[None]:
    """Around the aborts of several groups: those of NCCL can deadlock each other where they end one by one.

    As torch's own `_abort_process_group` does it for all groups (https://github.com/pytorch/pytorch/issues/119797);
    `_group_start` and `_group_end` are in 2.8 and 2.13.
    """
    backend = next((found for group in groups if (found := _nccl_backend_of(group)) is not None), None)
    if backend is None:
        yield
        return
    backend._group_start()
    try:
        yield
    finally:
        backend._group_end()


def _nccl_backend_of(group: dist.ProcessGroup) -> Any:
    if _nccl is None or not torch.cuda.is_available():
        return None
    try:
        backend: Any = cast("Any", group)._get_backend(torch.device("cuda"))
    except RuntimeError:  # it has none for that kind of device
        return None
    return backend if isinstance(backend, _nccl) else None


def all_gather(group: Any, outputs: list[torch.Tensor], tensor: torch.Tensor, *, async_op: bool) -> Any:
    """Into a tensor for each member."""
    return group.allgather([outputs], [tensor], _gather_options(async_op))


def all_gather_single(group: Any, output: torch.Tensor, tensor: torch.Tensor, *, async_op: bool) -> Any:
    """Into one tensor. torch 2.13 has a public name for this method, and keeps the old one."""
    return group._allgather_base(output, tensor, _gather_options(async_op))


def reduce_scatter_single(group: Any, output: torch.Tensor, tensor: torch.Tensor, options: Any) -> Any:
    """Out of one tensor. torch 2.13 has a public name for this method, and keeps the old one."""
    return group._reduce_scatter_base(output, tensor, options)


class coalesced:  # noqa: N801 (a context manager, used like a function)
    """Sends and receives inside become one call, as in `batch_isend_irecv`; `work` is there afterwards."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group = group
        self._device = device
        self.work: Any = None

    def __enter__(self) -> Self:
        self._group._start_coalescing(self._device)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.work = self._group._end_coalescing(self._device)


def _gather_options(async_op: bool) -> Any:
    options = _AllgatherOptions()
    options.asyncOp = async_op
    return options


def gloo_device(*, hostname: str = "", interface: str = "") -> Any:
    """A gloo transport on the address or interface given, else torch's default; it connects when it is first used.

    For one group: groups that share one that connects late wait for each other's connections (torch 2.13).
    """
    if interface:
        return _gloo.create_device(interface=interface, lazy_init=True)
    if hostname:
        return _gloo.create_device(hostname=hostname, lazy_init=True)
    return _gloo.create_default_device(lazy_init=True)


def gloo_backend(store: dist.Store, rank: int, size: int, timeout: timedelta, *devices: Any) -> Any:
    """Says in the store where it listens, and connects to nobody yet."""
    options = _gloo._Options()
    options._devices = list(devices)
    options._timeout = timeout
    return _gloo(store, rank, size, options)


def gloo_address(told: bytes) -> tuple[str, int]:
    """Where a gloo device listens, IP address and port, out of what its backend says in the store.

    That is a host's name and a `sockaddr_storage` with a number behind it, each with its length before it as 8 bytes
    (gloo's `transport/tcp/context.cc`, `address.h`; torch 2.8, 2.13).
    """
    start = _gloo_address_at(told)
    family = int.from_bytes(told[start : start + 2], sys.byteorder)
    port = int.from_bytes(told[start + 2 : start + 4], "big")
    if family == socket.AF_INET:
        return socket.inet_ntop(family, told[start + 4 : start + 8]), port
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, told[start + 8 : start + 24]), port
    raise RuntimeError(f"gloo listens at an address of family {family}, expected IPv4 or IPv6")


def gloo_blobs(told: bytes, addresses: Iterable[tuple[str, int]]) -> list[bytes]:
    """What backends would say that listen at other addresses, of the same family as the one that said `told`."""
    start = _gloo_address_at(told)
    before, flow, kept = told[: start + 2], told[start + 4 : start + 8], {4: told[start + 8 :], 16: told[start + 24 :]}
    packed: dict[str, bytes] = {}
    made: list[bytes] = []
    for host, port in addresses:
        address = packed.get(host)
        if address is None:
            address = packed[host] = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        between = flow if len(address) == 16 else b""
        made.append(before + port.to_bytes(2, "big") + between + address + kept[len(address)])
    return made


def gloo_nowhere(told: bytes) -> bytes:
    """What leads a backend nowhere: it raises when it is to connect there."""
    start = _gloo_address_at(told)
    return told[:start] + b"\0\0" + told[start + 2 :]


def gloo_greeting(position: int) -> bytes:
    """What a member at that position says first where another one listens."""
    return position.to_bytes(8, sys.byteorder)


def gloo_initiates(mine: tuple[str, int], theirs: tuple[str, int]) -> bool:
    """Whether this side connects: the one of the larger address, or port (gloo's `transport/tcp/device.cc`)."""

    def key(address: tuple[str, int]) -> tuple[bytes, int]:
        host, port = address
        packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        return packed, int.from_bytes(port.to_bytes(2, "big"), sys.byteorder)  # it compares ports as they travel

    return key(mine) > key(theirs)


def _gloo_address_at(told: bytes) -> int:
    """Where the `sockaddr` begins."""
    name = int.from_bytes(told[:8], sys.byteorder)
    length = int.from_bytes(told[8 + name : 16 + name], sys.byteorder)
    if len(told) < 16 + name + length or length < 32:
        raise RuntimeError("gloo says in an unknown form where it listens: this version of torch was not seen yet")
    return 16 + name


def nccl_options(timeout: timedelta, *, high_priority: bool, config: Mapping[str, Any]) -> Any:
    """Options of NCCL process groups; `config` are fields of NCCL's own configuration."""
    options = _nccl.Options(is_high_priority_stream=high_priority)
    options._timeout = timeout
    for name, value in config.items():
        setattr(options.config, name, value)
    return options


def nccl_backend(store: dist.Store, rank: int, size: int, options: Any, device: torch.device) -> Any:
    """Connects at once rather than at the first collective, so that what fails fails here."""
    backend = _nccl(store, rank, size, options)
    backend.eager_connect_single_device(device)
    return backend


def new_process_group(
    store: dist.Store,
    rank: int,
    size: int,
    *,
    description: str,
    key: str,
    kind: str,
    backends: Mapping[str, Any],
    device: torch.device | None = None,
) -> dist.ProcessGroup:
    """A process group of the given backends (device type -> backend) that no registry of torch's knows.

    Args:
        description: shown by torch's profiler and flight recorder.
        key: the group's unique name inside torch.
        kind: `"gloo"` or `"nccl"`, the backend that answers where no tensor says which.
        device: bound to the group, for NCCL.
    """
    group = _GroupClass(store, rank, size)
    backend_type = getattr(_GroupClass.BackendType, kind.upper())
    group._set_default_backend(backend_type)
    if device is not None:
        group.bound_device_id = device
    for device_type, backend in backends.items():
        if _VERSION < (2, 14):  # does nothing since, but warn on every rank
            backend._set_sequence_number_for_group()
        group._register_backend(torch.device(device_type), backend_type, backend)
    group._set_group_name(key)
    group._set_group_desc(description)
    return cast("dist.ProcessGroup", group)


def set_timeout(group: dist.ProcessGroup, timeout: timedelta) -> None:
    """How long the operations of a group wait from now on."""
    untyped: Any = group
    for device in untyped._device_types:
        backend = untyped._get_backend(device)
        # TORCH_DISTRIBUTED_DEBUG=DETAIL puts a wrapper around each backend, which has no such method (torch 2.13).
        getattr(backend, "wrapped_pg", backend)._set_default_timeout(timeout)


def new_registered_group(
    store: dist.Store,
    ranks: list[int],
    rank: int,
    *,
    name: str,
    description: str,
    backend: str,
    timeout: timedelta,
    options: Any = None,
) -> dist.ProcessGroup:
    """A process group that torch's registry knows, made by its members only, with these in the order given.

    What `new_group(ranks, use_local_synchronization=True)` does, but for the name and the store. `new_group` derives
    the name from the ranks and the number of groups there are, so that a group made after an equal one has ended gets
    its name, and finds in the default store what that one left there (seen with torch 2.13: connections that hang).

    Args:
        store: for nothing but this group.
        name: no other living group of this process has it.
        description: shown by torch's profiler and flight recorder.
        options: the backend's own.
    """
    torch_c10d = _c10d.distributed_c10d
    group, _ = torch_c10d._new_process_group_helper(
        len(ranks), rank, ranks, torch_c10d.Backend(backend), store, name, backend_options=options, timeout=timeout,
        group_desc=description,
    )  # fmt: skip
    torch_c10d._world.pg_group_ranks[group] = {member: index for index, member in enumerate(ranks)}
    return group


def default_store() -> dist.Store:
    """The store over which `init_process_group` made the default group."""
    return _c10d.distributed_c10d._get_default_store()


def default_group_splits() -> bool:
    """Whether torch would split new groups off the default one's communicator: all its ranks must then take part."""
    return _c10d.distributed_c10d._get_default_group().bound_device_id is not None


def is_registered(group: dist.ProcessGroup) -> bool:
    """Whether torch's registry knows a group, so that code which is handed it may ask torch for its ranks or name."""
    return group in _c10d.distributed_c10d._world.pg_map


def forget_meshes() -> None:
    """Empty DTensor's memory of how operations shard their results.

    It knows a mesh by its ranks and names: where an equal mesh was used before, results would carry that one, whose
    groups may have ended (torch 2.13: "Could not resolve the process group registered under the name").
    """
    if "torch.distributed.tensor" not in sys.modules:
        return
    debug = import_module("torch.distributed.tensor.debug")
    names = ("_clear_sharding_prop_cache", "_clear_python_sharding_prop_cache", "_clear_fast_path_sharding_prop_cache")
    clears = [getattr(debug, name) for name in names if hasattr(debug, name)]  # torch 2.13: the first; 2.10: the others
    if not clears:  # torch 2.8
        tensors: Any = import_module("torch.distributed.tensor._api")
        clears = [tensors.DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache.cache_clear]
    for clear in clears:
        clear()


def clone_store(store: dist.Store) -> dist.Store:
    """A client of the same store that can be used beside it; the store itself where it has none (a class of Python's).

    `Store.clone` came with torch 2.8 (pytorch #150966).
    """
    try:
        return cast("Any", store).clone()
    except (NotImplementedError, AttributeError, TypeError):
        return store
    except RuntimeError as error:
        if "pure virtual" in str(error) or "not implemented" in str(error).lower():
            return store
        raise


def end_waits(client: dist.Store) -> None:
    """Shut the connection of a client of a TCPStore down, so that a thread which waits in it gets an error at once.

    Its descriptor stands only in its `repr` (torch 2.13: `TCPStore(client=TCPClient(SocketImpl(fd=15, ...`); where it
    does not, the thread waits until its own timeout.
    """
    base = base_store(client)
    found = re.search(r"SocketImpl\(fd=(\d+),", repr(base)) if isinstance(base, dist.TCPStore) else None
    if found is not None:
        with suppress(OSError), socket.socket(fileno=os.dup(int(found[1]))) as connection:
            connection.shutdown(socket.SHUT_RDWR)


def base_store(store: dist.Store) -> dist.Store:
    """The store below all prefixes."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return store


def is_extended(store: dist.Store) -> bool:
    """Whether a store has `append` and `multi_set`: those of a file have, and say they have not."""
    return isinstance(base_store(store), (dist.TCPStore, dist.HashStore, dist.FileStore))


def is_file(store: dist.Store) -> bool:
    """Whether a store is a file."""
    return isinstance(base_store(store), dist.FileStore)


def is_local(store: dist.Store) -> bool:
    """Whether a store is memory of this process, and no class derived from torch's, which may do anything."""
    return type(base_store(store)) is dist.HashStore


def is_tcp(store: dist.Store) -> bool:
    """Whether a store is a server's client."""
    return isinstance(base_store(store), dist.TCPStore)


def multi_get(store: dist.Store, keys: Sequence[str], timeout: timedelta) -> list[bytes]:
    """Several keys in one operation, which waits for those that are not there."""
    client: Any = store
    before = client.timeout
    client.set_timeout(timeout)
    try:
        return [bytes(value) for value in client.multi_get(list(keys))]
    finally:
        client.set_timeout(before)


def multi_set(store: dist.Store, values: Mapping[str, str | bytes]) -> None:
    """Several keys in one operation; missing in torch's stubs."""
    cast("Any", store).multi_set(list(values), list(values.values()))


def append(store: dist.Store, key: str, text: str) -> None:
    """Add to a key's value; missing in torch's stubs."""
    cast("Any", store).append(key, text)


def list_keys(store: dist.Store) -> list[str]:
    """All keys, without the prefix of a `PrefixStore`; none where it cannot tell. Seen in torch 2.13, not in 2.8."""
    try:
        return list(cast("Any", store).list_keys())
    except (AttributeError, RuntimeError):  # NotImplementedError is one
        return []


def default_store_at(port: int) -> dist.Store | None:
    """The store over which this process's default group was made, if it is at `port`."""
    if not dist.is_initialized():
        return None
    store = base_store(default_store())
    return store if isinstance(store, dist.TCPStore) and store.port == port else None


# Autograd's threads, and what torch.compile leaves alone: 2.8 and 2.13.

ENGINE: Any = cast("Any", torch.autograd.graph)._engine_run_backward
"""The function of torch's through which every `backward` goes."""

BACKWARD_CARRIES_CONTEXT: bool = "_stash_obj_in_tls" in ENGINE.__code__.co_names
"""Whether autograd's threads can ask for the context in which `backward` was called: in 2.13, not in 2.8."""


def context_of_backward() -> Context | None:
    """The context in which the `backward` was called that this thread works for; None outside of one."""
    bindings: Any = cast("Any", torch)._C
    return bindings._get_obj_in_tls("context") if bindings._is_key_in_tls("context") else None


@contextmanager
def context_of_backward_kept() -> Generator[None]:
    """Around a `backward` inside of another one: torch forgets the outer one's context when the inner one has ended."""
    context = context_of_backward()
    try:
        yield
    finally:
        if context is not None:  # until the outer one has ended
            cast("Any", torch)._C._stash_obj_in_tls("context", context)


def in_backward() -> bool:
    """Whether this thread runs a node of autograd's."""
    return cast("Any", torch)._C._current_graph_task_id() != -1


UNTRACED = f"{os.path.dirname(torch.__file__)}/_dynamo/<parallel_topology>"
"""A file name for code that `torch.compile` shall call and not trace: it leaves out what seems to be its own."""


def shard_order(placements: Sequence[Any], sizes: Sequence[int]) -> dict[int, list[int]] | None:
    """Tensor dim -> the dims of the mesh that cut it, the first one first; None where the placements say no such order.

    `placements` are a DTensor's on a mesh of these sizes. Mesh dims cut in their order, but for a `_StridedShard`
    (FSDP2's, over tensor parallelism): the dims behind it, of as many ranks as its `split_factor`, cut before it. The
    class is in torch 2.8 and 2.13; in 2.13 it is no `Shard` any more, and `Shard` has no `split_factor` in either.
    """
    found: dict[int, list[int]] = {}
    for at in range(len(placements) - 1, -1, -1):
        placement = placements[at]
        if placement.is_replicate():
            continue
        if placement.is_partial():
            return None
        later = found.setdefault(placement.dim, [])
        factor, before = getattr(placement, "split_factor", 1), 0
        while factor > 1 and before < len(later) and factor % sizes[later[before]] == 0:
            factor //= sizes[later[before]]
            before += 1
        if factor > 1:
            return None
        later.insert(before, at)
    return found
