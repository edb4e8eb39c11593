"""DeclaredView: a `RankView` whose groups were made when it was, and which finds them by their axes or names."""

from __future__ import annotations

from typing import Generic, TypeVar

from parallel_topology.errors import UnknownAxisError
from parallel_topology.topology.rank_view import RankGroup, RankView

G = TypeVar("G", bound=RankGroup)


class DeclaredView(RankView, Generic[G]):
    """What `GroupManager` and its simulation share. Not a value: it has a life, and is equal to itself alone."""

    name: str
    _groups: dict[str, G]
    _absent: dict[str, G]  # of conventional axes that the topology does not have, made when they are asked for
    _declaring = "GroupManager(..., groups=[{axes!r}])"

    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__

    def _alone(self, name: str) -> G:
        """A group of this rank alone."""
        raise NotImplementedError

    def __getattr__(self, axis: str) -> G:
        if axis.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {axis!r}")
        return self[axis]

    def __getitem__(self, axes: str | tuple[str, ...]) -> G:
        names = axes if isinstance(axes, tuple) else (axes,)
        name = axes if isinstance(axes, str) and axes in self._groups else self.topology.group_name(*names)
        if name in self._groups:
            return self._groups[name]
        if set(name.split("-")).isdisjoint(self.topology.all_axes):
            if name not in self._absent:
                self._absent[name] = self._alone(name)
            return self._absent[name]
        raise UnknownAxisError(
            f"{self.name} has no group {name!r}; it has {', '.join(self._groups)}. "
            f"Declare combinations of axes at creation: {self._declaring.format(axes=names)}"
        )
