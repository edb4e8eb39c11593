"""Packed: several tensors as the columns of one tensor of bytes, so that one operation moves them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Packed:
    """Tensors `[n, ...]` of any dtypes, with equal `n`, as one `[n, bytes]`.

    >>> packed = Packed([torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)])
    >>> packed.whole.shape, [tuple(part.shape) for part in packed.apart(torch.cat([packed.whole] * 2))]
    (torch.Size([2, 20]), [(4, 3), (4,)])
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        """Each of `rows` is contiguous and holds its values."""
        self._like = [(one.dtype, one.shape[1:]) for one in rows]
        columns = [_as_columns(one) for one in rows]
        self._widths = [one.shape[1] for one in columns]
        self.whole = torch.cat(columns, 1)

    def apart(self, whole: Tensor) -> list[Tensor]:
        """The tensors out of a whole of any number of rows, as new ones."""
        return [
            part.clone(memory_format=torch.contiguous_format).view(dtype).view(whole.shape[0], *shape)
            for part, (dtype, shape) in zip(cut(whole, self._widths, 1), self._like, strict=True)
        ]


def cut(whole: Tensor, lengths: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Parts of these lengths along `dim`: views, in linear time."""
    return torch.split_with_sizes(whole, list(lengths), dim)


def _as_columns(rows: Tensor) -> Tensor:
    number = rows.shape[0]
    width = rows.numel() // number if number else rows.shape[1:].numel()
    return rows.as_strided((number, width), (width, 1)).view(torch.uint8)  # dims of length 1 may have any strides
