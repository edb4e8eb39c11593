"""What one rank sees: its place in the world (`RankView`) and in each of its groups (`RankGroup`). No communication."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from parallel_topology.errors import ImmutableError, TopologyError
from parallel_topology.topology.shares import Uneven, batch_share, shard, stage_chunks, stage_layers
from parallel_topology.topology.whole import quoted, whole

if TYPE_CHECKING:
    from parallel_topology.topology.layout import Ranks
    from parallel_topology.topology.topology import ParallelTopology


class Shaped(Protocol):
    """A tensor, as far as a part of it is to be taken."""

    @property
    def shape(self) -> Any: ...
    def __getitem__(self, index: Any, /) -> Any: ...


class RankGroup:
    """One group as one of its members sees it. A bound `ParallelGroup` is one of these that can communicate.

    A value: immutable, and equal to another of the same name, ranks and member.

    Attributes:
        name: the axes it runs along, `"tp"` or `"tp-pp"`; `"world"` for all ranks.
        rank: this rank's position in the group, 0 .. size - 1.
        size: the number of members.
        ranks: the members' global ranks, in group order.
        first_rank, last_rank: global ranks of the first and last member.
        next_rank, prev_rank: global ranks of this member's neighbours; they wrap around.
        is_first, is_last: whether this member is the first or last one.
    """

    name: str
    rank: int
    size: int
    ranks: Ranks
    first_rank: int
    last_rank: int
    next_rank: int
    prev_rank: int
    is_first: bool
    is_last: bool

    def __init__(self, name: str, ranks: Ranks, rank: int) -> None:
        size = ranks.size
        # Plain attributes, not properties: model code reads them in every forward.
        own = self.__dict__
        own["name"] = name
        own["rank"] = rank
        own["size"] = size
        own["ranks"] = ranks
        own["first_rank"] = ranks[0]
        own["last_rank"] = ranks[size - 1]
        own["next_rank"] = ranks[(rank + 1) % size]
        own["prev_rank"] = ranks[(rank - 1) % size]
        own["is_first"] = rank == 0
        own["is_last"] = rank == size - 1

    def shard(self, size: int, *, uneven: Uneven = "error") -> range:
        """This member's part of a tensor dim of `size`; see `shares.shard`."""
        return shard(size, self.rank, self.size, uneven=uneven)

    def shard_of(self, tensor: Shaped, dim: int = 0, *, uneven: Uneven = "error") -> Any:
        """This member's part of a tensor along `dim`: a view of it, of torch's, NumPy's or another array's kind.

        Args:
            tensor: `[..., size, ...]`; the part is `[..., size / group size, ...]`.
            dim: which one is divided; negative ones count from the last.
            uneven: as for `shard`.

        Raises:
            TopologyError: there is no such dim, or it does not divide.
        """
        shape = tuple(getattr(tensor, "shape", ()))
        number = whole(dim)
        if number is None or not -len(shape) <= number < len(shape):
            raise TopologyError(f"dim={quoted(dim)} is not one of the dims of a tensor of shape {list(shape)}")
        part = self.shard(shape[number], uneven=uneven)
        return tensor[(slice(None),) * (number % len(shape)) + (slice(part.start, part.stop),)]

    def batch_share(self, global_batch: int) -> range:
        """This member's samples of a batch, along a data-parallel axis; see `shares.batch_share`."""
        return batch_share(global_batch, self.rank, self.size)

    def stage_layers(self, layers: int, **how: Any) -> range:
        """The layers of this pipeline stage; `how` and errors as for `shares.stage_layers`."""
        return stage_layers(layers, self.rank, self.size, **how)

    def stage_chunks(self, layers: int, *, virtual: int, **how: Any) -> tuple[range, ...]:
        """The layers of this stage's `virtual` chunks; `how` and errors as for `shares.stage_chunks`."""
        return stage_chunks(layers, self.rank, self.size, virtual=virtual, **how)

    def __len__(self) -> int:
        return len(self.ranks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ranks)

    def __contains__(self, rank: object) -> bool:
        return rank in self.ranks

    def __eq__(self, other: object) -> bool:
        if type(other) is not RankGroup or type(self) is not RankGroup:
            return self is other  # a bound group is one of its kind
        return (self.name, self.rank, self.ranks) == (other.name, other.rank, other.ranks)

    def __hash__(self) -> int:
        return hash((self.name, self.rank, self.ranks)) if type(self) is RankGroup else id(self)

    def __setattr__(self, name: str, value: object, /) -> None:
        raise _frozen(self, name)

    def __delattr__(self, name: str, /) -> None:
        raise _frozen(self, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} rank {self.rank} of {self.ranks!r}>"


class RankView:
    """A topology seen from one rank: `view.tp` is the `RankGroup` along `tp`, `view["tp", "pp"]` along both.

    Groups answer to their names, too: `view["tp-pp"]`, `view["world"]`. A value: immutable, comparable, hashable.

    Attributes:
        topology: the whole.
        rank: this rank's global number.
        world: the group of all ranks of the topology.
    """

    topology: ParallelTopology
    rank: int
    world: RankGroup

    def __init__(self, topology: ParallelTopology, rank: int) -> None:
        self.__dict__.update(topology=topology, rank=rank)  # `world` is found as an axis is, when it is asked for

    @property
    def coordinate(self) -> dict[str, int]:
        """Axis -> index of this rank, the base axes in their order."""
        return self.topology.coordinate(self.rank)

    def __getattr__(self, axis: str) -> RankGroup:
        if axis.startswith("_"):  # copy and pickle probe for these before there is a topology
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {axis!r}")
        group = self[axis]
        self.__dict__[axis] = group
        return group

    def __getitem__(self, axes: str | tuple[str, ...]) -> RankGroup:
        names = axes if isinstance(axes, tuple) else (axes,)
        return self._group(self.topology.group_name(*names), self.topology.group(*names, rank=self.rank))

    def __setattr__(self, name: str, value: object, /) -> None:
        raise _frozen(self, name)

    def __delattr__(self, name: str, /) -> None:
        raise _frozen(self, name)

    def _group(self, name: str, ranks: Ranks) -> RankGroup:
        return RankGroup(name, ranks, ranks.index(self.rank))

    def __eq__(self, other: object) -> bool:
        if type(other) is not RankView or type(self) is not RankView:
            return self is other
        return self.topology == other.topology and self.rank == other.rank

    def __hash__(self) -> int:
        return hash((self.topology, self.rank)) if type(self) is RankView else id(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return RankView, (self.topology, self.rank)

    def __repr__(self) -> str:
        coordinate = " ".join(f"{axis}={index}" for axis, index in self.coordinate.items())
        return f"<{type(self).__name__} of {self.topology} at rank {self.rank} ({coordinate})>"


def _frozen(value: object, name: str) -> ImmutableError:
    return ImmutableError(f"{value!r} is immutable: {name!r} cannot be set or deleted")
