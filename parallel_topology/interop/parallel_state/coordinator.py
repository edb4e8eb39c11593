"""A manager's group as vLLM's and SGLang's `GroupCoordinator`: what their model code reads of it and calls on it.

Their methods by their words, ours underneath: a `src` or `dst` is a position in the group, what is reduced or gathered
is a new tensor, and objects travel without pickle. Whatever of theirs is not here raises and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor

from parallel_topology.communicators.handle import Handle
from parallel_topology.errors import GroupArgumentError, WireError
from parallel_topology.groups.group import ParallelGroup


class Coordinator:
    """The part of `GroupCoordinator` that needs no attribute but the group."""

    device_communicator = None
    mq_broadcaster = None
    use_custom_op_call = False

    def __init__(self, group: ParallelGroup, local_rank: int, alone: Callable[[], dist.ProcessGroup]) -> None:
        self.group = group
        self._alone = alone
        self.rank = group.ranks[group.rank]
        self.ranks = list(group.ranks)
        self.world_size = group.size
        self.rank_in_group = group.rank
        self.local_rank = self.device_index = local_rank
        self.device = group.device
        self.unique_name = group.label

    @property
    def first_rank(self) -> int:
        return self.group.first_rank

    @property
    def last_rank(self) -> int:
        return self.group.last_rank

    @property
    def next_rank(self) -> int:
        return self.group.next_rank

    @property
    def prev_rank(self) -> int:
        return self.group.prev_rank

    @property
    def is_first_rank(self) -> bool:
        return self.group.is_first

    @property
    def is_last_rank(self) -> bool:
        return self.group.is_last

    @property
    def device_group(self) -> dist.ProcessGroup:
        return self.group.device_group or self._alone()

    @property
    def cpu_group(self) -> dist.ProcessGroup:
        return self.group.cpu_group or self._alone()

    def all_reduce(self, input_: Tensor) -> Tensor:
        return self.group.all_reduce(input_, inplace=False) if self.world_size > 1 else input_

    def cpu_all_reduce_(self, tensor: Tensor) -> Tensor:
        return self.group.all_reduce(tensor)

    def all_gather(self, input_: Tensor, dim: int = -1) -> Tensor:
        return self.group.all_gather(input_, dim=dim)

    def all_gatherv(self, input_: Any, dim: int = 0, sizes: Sequence[int] | None = None) -> Any:
        return cast("Any", self.group).all_gather_v(input_, sizes, dim)

    def reduce_scatter(self, input_: Tensor, dim: int = -1) -> Tensor:
        return self.group.reduce_scatter(input_, dim=dim) if self.world_size > 1 else input_

    def reduce_scatterv(self, input_: Tensor, dim: int = -1, sizes: Sequence[int] | None = None) -> Tensor:
        if sizes is None:
            return self.reduce_scatter(input_, dim)
        return self.group.reduce_scatter_v(input_, sizes, dim=dim)

    def reduce_scatterv_into_output(
        self, input_: Tensor, output: Tensor, dim: int = -1, sizes: Sequence[int] | None = None
    ) -> Tensor:
        return output.copy_(self.reduce_scatterv(input_, dim, sizes))

    def gather(self, input_: Tensor, dst: int = 0, dim: int = -1) -> Tensor | None:
        return self.group.gather(input_, dst, dim)

    def broadcast(self, input_: Tensor, src: int = 0) -> Tensor:
        return self.group.broadcast(input_, src)

    def broadcast_object(self, obj: Any = None, src: int = 0) -> Any:
        return self.group.broadcast_object(obj, src)

    def broadcast_object_list(self, obj_list: list[Any], src: int = 0, group: object = None) -> list[Any]:
        obj_list[:] = self.group.broadcast_object(list(obj_list), src)
        return obj_list

    def send_object(self, obj: Any, dst: int) -> None:
        self.group.send_object(obj, dst)

    def recv_object(self, src: int) -> Any:
        return self.group.recv_object(src)

    def broadcast_tensor_dict(
        self,
        tensor_dict: dict[str, Any] | None = None,
        src: int = 0,
        group: object = None,
        metadata_group: object = None,
    ) -> dict[str, Any] | None:
        if self.world_size == 1:
            return tensor_dict
        return _received(self.group, src) if self.rank_in_group != src else _sent(self.group, tensor_dict or {}, src)

    def send_tensor_dict(
        self,
        tensor_dict: dict[str, Any],
        dst: int | None = None,
        all_gather_group: Coordinator | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> dict[str, Any] | None:
        if self.world_size == 1:
            return tensor_dict
        self.group.send_tensors(tensor_dict, dst, split=_over(all_gather_group), whole=_whole(all_gather_tensors))
        return None

    def isend_tensor_dict(
        self,
        tensor_dict: dict[str, Any],
        dst: int | None = None,
        all_gather_group: Coordinator | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> list[Handle[None]]:
        if self.world_size == 1:
            return []
        whole = _whole(all_gather_tensors)
        return [self.group.isend_tensors(tensor_dict, dst, split=_over(all_gather_group), whole=whole)]

    def recv_tensor_dict(
        self,
        src: int | None = None,
        all_gather_group: Coordinator | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> dict[str, Any] | None:
        return self.group.recv_tensors(src, split=_over(all_gather_group)) if self.world_size > 1 else None

    def barrier(self) -> None:
        self.group.barrier()

    def send(self, tensor: Tensor, dst: int | None = None) -> None:
        self.group.send(tensor, dst)

    def recv(self, size: Sequence[int], dtype: torch.dtype, src: int | None = None) -> Tensor:
        return self.group.recv(torch.empty(tuple(size), dtype=dtype, device=self.device), src)

    @contextmanager
    def graph_capture(self, graph_capture_context: Any = None) -> Generator[Any]:
        """Around a capture, on the stream of vLLM's context."""
        with self.group.capture(stream=getattr(graph_capture_context, "stream", None)) as stream:
            yield graph_capture_context or stream

    def __copy__(self) -> Coordinator:
        return self

    def __deepcopy__(self, memo: object) -> Coordinator:
        return self

    def __repr__(self) -> str:
        return f"<GroupCoordinator served by {self.group!r}>"


class SglangCoordinator(Coordinator):
    """Where SGLang's methods have other arguments, or are in none of vLLM's."""

    def all_gather(self, input_: Tensor, dim: int = -1, output_tensor_list: list[Tensor] | None = None) -> Any:
        if output_tensor_list is None:
            return super().all_gather(input_, dim)
        whole = self.group.all_gather(input_.unsqueeze(0), dim=0)
        for output, part in zip(output_tensor_list, whole, strict=True):
            output.copy_(part)
        return None

    def all_gather_into_tensor(self, output: Tensor, input: Tensor) -> None:
        output.copy_(self.group.all_gather(input, dim=0).view(output.shape))

    def all_gatherv(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_: Any, sizes: Sequence[int] | None = None, output: Tensor | None = None
    ) -> Any:
        found = super().all_gatherv(input_, 0, sizes)
        return found if output is None else output.copy_(found)

    def all_gather_object(self, obj: Any) -> list[Any]:
        return self.group.all_gather_object(obj)

    def reduce_scatter(self, output: Tensor, input_list: list[Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return output.copy_(self.group.reduce_scatter(torch.stack(input_list), dim=0).view(output.shape))

    def reduce_scatter_along_dim(self, input_: Tensor, dim: int = -1) -> Tensor:
        return super().reduce_scatter(input_, dim)

    def reduce_scatter_tensor(self, output: Tensor, input: Tensor) -> None:
        output.copy_(self.group.reduce_scatter(input, dim=0).view(output.shape))

    def reduce_scatterv(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_: Tensor, output: Tensor | None = None, sizes: Sequence[int] | None = None
    ) -> Tensor:
        found = super().reduce_scatter(input_, 0) if sizes is None else super().reduce_scatterv(input_, 0, sizes)
        return found if output is None else output.copy_(found)

    def all_to_all_single(self, output: Tensor, input: Tensor) -> None:
        output.copy_(self.group.all_to_all(input))

    def send_object(self, obj: Any, dst: int, async_send: bool = False, tag: int = 0) -> list[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.group.send_object(obj, dst)
        return []

    def recv_object(self, src: int, tag: int = 0) -> Any:
        return self.group.recv_object(src)

    def send_tensor_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tensor_dict: dict[str, Any],
        dst: int | None = None,
        all_gather_group: Coordinator | None = None,
        async_send: bool = False,
    ) -> Any:
        if not async_send or self.world_size == 1:
            return super().send_tensor_dict(tensor_dict, dst, all_gather_group)
        return [P2PWork(self.group.isend_tensors(tensor_dict, dst, split=_over(all_gather_group)))]


class P2PWork(NamedTuple):
    """What SGLang waits for: `for work in works: work.work.wait()`."""

    work: Handle[None]
    payload: Tensor | None = None


def coordinator(
    theirs: type, group: ParallelGroup, local_rank: int, alone: Callable[[], dist.ProcessGroup]
) -> Coordinator:
    """An instance of their class, too, for code that asks for its type."""
    return cast("Any", _class(theirs))(group, local_rank, alone)


def _class(theirs: type) -> type:
    ours = SglangCoordinator if theirs.__module__.startswith("sglang.") else Coordinator
    names = [name for name in vars(theirs) if not name.startswith("__") and not hasattr(ours, name)]
    return type("ServedCoordinator", (ours, theirs), {name: _refusing(name) for name in names})


def _refusing(name: str) -> property:
    def refuse(self: Coordinator) -> NoReturn:
        raise GroupArgumentError(f"{name} of {self!r} has no meaning for a manager's group")

    return property(refuse)


def _over(group: Coordinator | None) -> ParallelGroup | None:
    return None if group is None else group.group


def _whole(all_gather_tensors: dict[str, bool] | None) -> tuple[str, ...]:
    """The tensors that are not the same on all members of the other group."""
    return tuple(name for name, gathered in (all_gather_tensors or {}).items() if not gathered)


def _sent(group: ParallelGroup, tensors: dict[str, Any], src: int) -> dict[str, Any]:
    """What stands in the dict first, then each tensor that is not empty."""
    said: list[tuple[str, bool, Any]] = []
    for key, value in tensors.items():
        if isinstance(value, Tensor):
            where = "cpu" if value.device.type == "cpu" else ""
            said.append((key, True, (list(value.shape), str(value.dtype).removeprefix("torch."), where)))
        else:
            said.append((key, False, value))
    group.broadcast_object(said, src)
    for value in tensors.values():
        if isinstance(value, Tensor) and value.numel():
            group.broadcast(value, src)
    return tensors


def _received(group: ParallelGroup, src: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, is_tensor, value in group.broadcast_object(None, src):
        if not is_tensor:
            found[key] = value
            continue
        shape, name, where = value
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise WireError(f"broadcast_tensor_dict on {group.label}: {name!r} is no dtype of torch's")
        found[key] = torch.empty(shape, dtype=dtype, device=where or group.device)
        if found[key].numel():
            group.broadcast(found[key], src)
    return found
