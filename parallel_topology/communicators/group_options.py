"""GroupOptions: how the groups along one axis are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from parallel_topology.errors import GroupArgumentError, MissingExtraError


def _seconds(timeout: object) -> object:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


_Ctas = Annotated[int, Field(ge=1, le=64)]


class GroupOptions(BaseModel):
    """How the groups along one axis are made: `GroupManager(..., options={"tp": GroupOptions(max_ctas=8)})`.

    An axis with options of its own has process groups of its own, also where another has the same ranks. The fields
    that only NCCL knows are refused with gloo.

    >>> GroupOptions(communicators=("nccl", "torch"), timeout=60).model_dump_json(exclude_defaults=True)
    '{"timeout":60.0,"communicators":["nccl","torch"]}'

    Attributes:
        timeout: seconds, or a `timedelta`, that operations wait, if not the manager's.
        communicators: names of those that are asked, in this order, who carries out a call; torch's is always the last.
            Without any, "shared_memory" in groups within a host, "two_levels" where several hosts have members.
        shared_memory_bytes: what a member reads of the others in an all-reduce, broadcast, all-gather or all-to-all
            through shared memory at most; where more is to be read it goes over gloo, as other collectives do to which
            a member gives more than 256 KiB. Messages may have twice as much, up to 16 MiB. A group takes up to 34 MiB
            of memory for each member, as far as it is used.
        high_priority_stream: NCCL: kernels go before those of other streams.
        min_ctas, max_ctas: NCCL: thread blocks that a collective takes
            (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/types.html#ncclconfig-t).
        cga_cluster_size: NCCL: thread blocks in a cluster, 0 to 8.
        net_name: NCCL: the network module, such as `"IB"` or `"Socket"`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout: Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)] | None = None
    communicators: tuple[str, ...] = ()
    shared_memory_bytes: Annotated[int, Field(ge=4096, le=2**30)] = 2**23
    high_priority_stream: bool = False
    min_ctas: _Ctas | None = None
    max_ctas: _Ctas | None = None
    cga_cluster_size: Annotated[int, Field(ge=0, le=8)] | None = None
    net_name: str | None = None

    @property
    def shares_memory(self) -> bool:
        """Whether groups within a host use shared memory."""
        return not self.communicators or bool({"shared_memory", "two_levels"} & {*self.communicators})

    @property
    def nccl_config(self) -> dict[str, Any]:
        """The fields of NCCL's own configuration that are set."""
        names = ("min_ctas", "max_ctas", "cga_cluster_size", "net_name")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @classmethod
    def load(cls, path: Path | str) -> dict[str, Self]:
        """Axis -> options, from a JSON or YAML file: `{"tp": {"max_ctas": 8}}`.

        Raises:
            GroupArgumentError: the file cannot be read, or holds something else.
            MissingExtraError: a YAML file, and PyYAML is not installed.
        """
        path = Path(path)
        try:
            text = path.read_text()
        except OSError as error:
            raise GroupArgumentError(f"cannot read {path}: {error.strerror}") from error
        try:
            read: Any = json.loads(text) if path.suffix == ".json" else _yaml().safe_load(text)
        except ValueError as error:
            raise GroupArgumentError(f"{path} is no JSON: {error}") from error
        return cls.by_axis(read, str(path))

    @classmethod
    def by_axis(cls, given: Any, where: str = "options") -> dict[str, Self]:
        """Axis -> options, from a mapping of options or of their fields.

        Raises:
            GroupArgumentError: it is not such a mapping.
        """
        if not isinstance(given, Mapping):
            raise GroupArgumentError(f"{where}: expected axis -> options, as in {{'tp': {{'max_ctas': 8}}}}")
        options: dict[str, Self] = {}
        for axis, fields in cast("Mapping[Any, Any]", given).items():
            try:
                options[str(axis)] = cls.model_validate(fields)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                raise GroupArgumentError(
                    f"{where}: {axis}: {field}={first['input']!r}: {first['msg']}; the fields are "
                    f"{', '.join(cls.model_fields)}"
                ) from error
        return options


def _yaml() -> Any:
    try:
        return import_module("yaml")
    except ImportError:
        raise MissingExtraError("options in YAML need PyYAML: pip install pyyaml; or write them as JSON") from None
