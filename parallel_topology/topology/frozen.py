"""FrozenDict: a dict that cannot be changed, for what a value is made of."""

from __future__ import annotations

from typing import Any, Generic, NoReturn, TypeVar

from parallel_topology.errors import ImmutableError

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(dict[K, V], Generic[K, V]):
    """A dict, so that everything that reads one takes it, without the methods that change one."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ImmutableError("a topology is immutable: make a changed one, as with model_copy(update={'tp': 4})")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse  # pyright: ignore

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)
