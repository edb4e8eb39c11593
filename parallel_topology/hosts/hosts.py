"""Placement: which ranks are on which host."""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NoReturn, final

from parallel_topology.errors import RankError, TopologyError
from parallel_topology.hosts.bounds import Bounds, bounds_of, each, moved, placed_in
from parallel_topology.hosts.spans import Spans, extent, hosts_from, is_run, is_uniform
from parallel_topology.topology import whole
from parallel_topology.topology.kinds import require_kind
from parallel_topology.topology.layout import Placement, Ranks
from parallel_topology.topology.topology import ParallelTopology

if TYPE_CHECKING:
    from pydantic_core import core_schema


_UNIFORM = re.compile(r"([0-9]+)x([0-9]+)")
_LIST = "[0-9]+(,[0-9]+)*"
_NUMBERS = re.compile(_LIST)
_EXPECTED = (
    "expected hosts x ranks, as in '2x4', or the ranks on each host, as in '4,4,2', both perhaps with a first rank, as "
    "in '2x4@8', or every host's ranks, as in '0,4/1,5'"
)


@final
class Hosts:
    """Which ranks are on which host. Immutable, hashable, comparable; made by `uniform`, `uneven`, `listed`, `parse`.

    >>> hosts = Hosts.uniform(count=2, ranks_per_host=4)
    >>> str(hosts), hosts.host_of(5), hosts.local_rank_of(5), hosts.ranks_of(1)
    ('2x4', 1, 1, range(4, 8))
    >>> Hosts.parse("4,4") == hosts, Hosts.listed([[0, 4], [1, 5]]).host_of(4)
    (True, 0)

    The same placement is the same value, however it was written. Its text is `2x4` (2 hosts of 4 ranks), `4,4,2`
    (hosts of so many ranks), either with `@8` when the first rank is not 0, or `0,4/1,5` (the ranks of each host, in
    the order of their local ranks; `0,4/` when there is one host). What makes no placement, such as a host without
    ranks, a rank that stands twice or a text that cannot be read, is a `TopologyError`. As a field of a pydantic model
    it is that text: `hosts: 2x4` in a configuration, `"2x4"` in JSON.

    Attributes:
        starts: where each host, numbered from 0, begins, and where the last ends; a range when all are of one size.
            These are ranks; when `ranks` is given, positions in it.
        ranks: all ranks, host by host, when they do not simply count up.
    """

    __slots__ = ("_placement", "ranks", "starts")

    starts: Bounds
    ranks: tuple[int, ...] | None
    _placement: Placement | None

    def __init__(self, starts: Iterable[int], ranks: Iterable[int] | None = None) -> None:
        bounds = bounds_of(starts)
        placed = None if ranks is None else placed_in(bounds, ranks)
        if placed and placed == tuple(range(placed[0], placed[0] + len(placed))):
            bounds, placed = moved(bounds, placed[0]), None
        object.__setattr__(self, "starts", bounds)
        object.__setattr__(self, "ranks", placed)
        object.__setattr__(self, "_placement", Placement(placed) if placed else None)

    @classmethod
    def uniform(cls, *, count: int, ranks_per_host: int, first_rank: int = 0) -> Hosts:
        """`count` hosts with `ranks_per_host` consecutive ranks each, from `first_rank` on."""
        hosts, size = whole.require(1, "count", count), whole.require(1, "ranks_per_host", ranks_per_host)
        first = whole.require(0, "first_rank", first_rank)
        return cls(range(first, first + hosts * size + 1, size))

    @classmethod
    def uneven(cls, counts: Iterable[int], *, first_rank: int = 0) -> Hosts:
        """Consecutive ranks from `first_rank` on, as many on each host as `counts` says."""
        sizes = [
            whole.require(1, f"the number of ranks on host {host}", count)
            for host, count in enumerate(each("the numbers of ranks", counts))
        ]
        if not sizes:
            raise TopologyError("no hosts were given; expected at least one")
        return cls(accumulate(sizes, initial=whole.require(0, "first_rank", first_rank)))

    @classmethod
    def listed(cls, ranks: Iterable[Iterable[int]]) -> Hosts:
        """Explicit ranks, host by host, each host's in the order of their local ranks."""
        lists = [
            list(each(f"the ranks of host {host}", members))
            for host, members in enumerate(each("the ranks of all hosts", ranks))
        ]
        counted = cls.uneven(map(len, lists))
        home: dict[int, int] = {}
        for host, members in enumerate(lists):
            for member in members:
                rank = whole.require(0, f"a rank of host {host}", member)
                if rank in home:
                    raise TopologyError(f"rank {rank} stands on hosts {home[rank]} and {host}; expected each rank once")
                home[rank] = host
        return cls(counted.starts, home)

    @classmethod
    def parse(cls, text: str) -> Hosts:
        """The placement that a text stands for; `str(hosts)` gives the canonical text back."""
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TopologyError(f"hosts {whole.quoted(text)}: {_EXPECTED}")
        body, at, first = text.partition("@")
        if not at and "/" in body:
            lists = body.removesuffix("/").split("/")
            if all(_NUMBERS.fullmatch(ranks) for ranks in lists):
                return cls.listed(map(whole.from_digits, ranks.split(",")) for ranks in lists)
        elif not at or re.fullmatch("[0-9]+", first):
            first_rank = whole.from_digits(first or "0")
            if match := _UNIFORM.fullmatch(body):
                count, size = map(whole.from_digits, match.groups())
                return cls.uniform(count=count, ranks_per_host=size, first_rank=first_rank)
            if _NUMBERS.fullmatch(body):
                return cls.uneven(map(whole.from_digits, body.split(",")), first_rank=first_rank)
        raise TopologyError(f"cannot read hosts {whole.quoted(text)}: {_EXPECTED}")

    def __str__(self) -> str:
        if self.ranks is not None:
            return "/".join(",".join(map(str, members)) for members in self) + "/" * (len(self) == 1)
        uniform = isinstance(self.starts, range)
        sizes = (end - start for start, end in pairwise(self.starts))
        counts = f"{self.host_count}x{next(sizes)}" if uniform else ",".join(map(str, sizes))
        return counts + (f"@{self.starts[0]}" if self.starts[0] else "")

    def __repr__(self) -> str:
        return f"Hosts.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hosts):
            return NotImplemented
        return (self.starts, self.ranks) == (other.starts, other.ranks)

    def __hash__(self) -> int:
        return hash((self.starts, self.ranks))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"the hosts {self} cannot be changed, nor can {name!r} of them: make others")

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hosts, (self.starts, self.ranks)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        from pydantic_core import core_schema  # when a model asks: hosts by themselves need no pydantic

        return core_schema.no_info_plain_validator_function(
            lambda given: given if isinstance(given, Hosts) else cls.parse(given),
            serialization=core_schema.to_string_ser_schema(when_used="json"),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: object) -> dict[str, Any]:
        return {
            "type": "string",
            "pattern": rf"^([0-9]+x[0-9]+|{_LIST})(@[0-9]+)?$|^{_LIST}(/{_LIST})*/?$",
            "description": f"Which ranks are on which host: {_EXPECTED}.",
            "examples": ["2x4", "4,4,2", "0,4/1,5"],
        }

    def __len__(self) -> int:
        """The number of hosts.

        Raises:
            TopologyError: there are more than `len` can say; `host_count` says it.
        """
        if self.host_count > sys.maxsize:
            raise TopologyError(f"{self} has more hosts than len() can say: use host_count")
        return self.host_count

    def __iter__(self) -> Iterator[Sequence[int]]:
        """The ranks of each host."""
        return map(self.ranks_of, range(self.host_count))

    def __contains__(self, rank: object) -> bool:
        return self._place(rank) is not None

    @property
    def host_count(self) -> int:
        """The number of hosts."""
        if isinstance(self.starts, range):
            return self.rank_count // self.starts.step
        return len(self.starts) - 1

    @property
    def rank_count(self) -> int:
        """The number of ranks on all hosts together."""
        return self.starts[-1] - self.starts[0]

    def ranks_of(self, host: int) -> Sequence[int]:
        """The global ranks on a host, in the order of their local ranks; a `RankError` if there is no such host."""
        number = whole.whole(host)
        if number is None or not 0 <= number < self.host_count:
            raise RankError(f"host {whole.quoted(host)} is outside 0..{self.host_count - 1} of the hosts {self}")
        members = range(self.starts[number], self.starts[number + 1])
        return members if self.ranks is None else self.ranks[members.start : members.stop]

    def host_of(self, rank: int) -> int:
        """The number of the host that `rank` is on, or a `RankError`."""
        return self._host_at(self._require_place(rank))

    def local_rank_of(self, rank: int) -> int:
        """Where `rank` stands among the ranks of its host, 0 for the first; raises as `host_of` does."""
        place = self._require_place(rank)
        return place - self.starts[self._host_at(place)]

    def hosts_of(self, ranks: Sequence[int]) -> Sequence[int]:
        """The numbers of the hosts that hold any of `ranks`, ascending; a `RankError` if one of them is on none."""
        plain = ranks.plain() if isinstance(ranks, Ranks) else None
        if plain is None or not (is_uniform(self) or (self.ranks is None and is_run(plain[1]))):
            return sorted(set(map(self.host_of, each("the ranks", ranks))))
        start, modes = plain
        last, first = self.host_of(start + extent(modes)), self.host_of(start)
        if is_run(modes):
            return range(first, last + 1)
        return hosts_from(start - self.starts[0], modes, self.starts[1] - self.starts[0])

    def spans(self, topology: ParallelTopology, *axes: str) -> Spans:
        """How the groups along one axis, or several together, lie on these hosts.

        Raises:
            TopologyError: these hosts do not hold all ranks of the topology.
            UnknownAxisError: an axis that is not there, or axes of different views.
        """
        self.require(topology)
        return Spans(topology.group_name(*axes), topology.groups(*axes), self)

    def require(self, topology: ParallelTopology) -> None:
        """Check that these hosts hold every rank of `topology`; they may hold others besides.

        Raises:
            TopologyError: they do not, or it is no topology.
        """
        require_kind(topology, ParallelTopology, "topology")
        missing = next((rank for rank in self._decisive(topology) if rank not in self), None)
        if missing is not None:
            raise TopologyError(
                f"the hosts {self} hold {self.rank_count} ranks, {self._held()}, but {topology} has "
                f"{topology.world_size}: rank {missing} is on no host"
            )

    def idle(self, topology: ParallelTopology) -> str:
        """How many places are left over by `topology`, in words; "" where none is.

        >>> from parallel_topology import ParallelTopology
        >>> Hosts.parse("4x2").idle(ParallelTopology(tp=4))
        '4 of 8 places stay idle'
        """
        spare = self.rank_count - require_kind(topology, ParallelTopology, "topology").world_size
        return f"{spare:,} of {self.rank_count:,} places stay idle" if spare else ""

    # Private

    def _decisive(self, topology: ParallelTopology) -> Iterable[int]:
        """Ranks of `topology` that are all here if any are: where these hosts hold a run, the ends are enough.

        Elsewhere every rank is looked at, until one is missing: at most one more than these hosts list.
        """
        world = topology.world
        if self.ranks is not None:
            return world
        plain = world.plain()
        return (min(world), max(world)) if plain is None else (plain[0], plain[0] + extent(plain[1]))

    def _place(self, rank: object) -> int | None:
        """Where `rank` stands between the first and the last of `starts`, or None."""
        number = whole.whole(rank)
        if number is not None and self._placement:
            return self._placement.position_of.get(number)
        return number if number is not None and self.starts[0] <= number < self.starts[-1] else None

    def _require_place(self, rank: object) -> int:
        place = self._place(rank)
        if place is None:
            raise RankError(f"rank {whole.quoted(rank)} is on none of the hosts {self}: they hold {self._held()}")
        return place

    def _host_at(self, place: int) -> int:
        if isinstance(self.starts, range):
            return (place - self.starts.start) // self.starts.step
        return bisect_right(self.starts, place) - 1

    def _held(self) -> str:
        if self.ranks is None:
            return f"{self.starts[0]}..{self.starts[-1] - 1}"
        return ", ".join(map(str, self.ranks[:16])) + ", ..." * (len(self.ranks) > 16)
