"""The rows of the items that a step lists, from the processes that own them, and their gradients back.

A step moves O(listed items x d) numbers, whatever the size of the catalog. Each process asks for the distinct items that its rows
of the batch list, once for both models, and says which model learns from which: the owner then knows whose gradients will come.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bdkernels import Factors
from bdkernels.distributed.collectives import Exchange
from bidistill.models.base import Tables


class ModelRows:
    """Rows of one model's item tables that lie on this process for a step.

    Attributes:
        items, item_bias: [n, d] and [n], in the order of the ids asked for.
        of_rows: the share of the whole batch's rows that is this process's.
        of_distilled: the share of the whole batch's distilled items.
    """

    def __init__(self, fetched: Fetched, bit: int, items: Tensor, item_bias: Tensor, of_distilled: float) -> None:
        self._fetched, self._bit = fetched, bit
        self.items, self.item_bias = items, item_bias
        self.of_rows, self.of_distilled = fetched.of_rows, of_distilled

    def factors(self, users: Tensor) -> Factors:
        """These items for the rows of a user table."""
        return Factors(users, self.items, self.item_bias)

    def give_back(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Send the gradients [n, d + 1] of rows and biases to the owners.

        Returns:
            ids [m] int64, numbered from this process's first item, and gradients [m, d + 1] that all processes have for them.
        """
        return self._fetched.give_back(self._bit, grads)


class Fetched:
    """The distinct items that a step lists here, numbered in the order of their ids."""

    def __init__(
        self, exchange: Exchange, offsets: Tensor, listed: Mapping[str, Tensor], numbers: list[int], first: int
    ) -> None:
        """
        Args:
            offsets: [processes + 1] int64, where each process's items start.
            listed: ids [R, C] int64 of the items that each learning model lists.
            numbers: what every process tells the others besides; `told` has each one's.
            first: id of this process's first item.
        """
        self._exchange, self.of_rows = exchange, 0.0
        own = {name: ids.unique() for name, ids in listed.items()}
        self.ids = torch.cat(list(own.values())).unique()
        flags = torch.zeros_like(self.ids)
        for bit, ids in enumerate(own.values()):
            flags[torch.searchsorted(self.ids, ids)] += 1 << bit
        self._send = torch.searchsorted(self.ids, offsets).diff().tolist()
        told = exchange.tell("step", [[n, *numbers] for n in self._send])
        self._receive, self.told = [row[0] for row in told], [row[1:] for row in told]
        wanted = exchange.route(self.ids << 2 | flags, self._send, self._receive)
        self._wanted, self._wanted_flags, self._flags = (wanted >> 2) - first, wanted & 3, flags

    def number(self, ids: Tensor) -> Tensor:
        """The numbers here of ids that were listed; of others, any number here."""
        return torch.searchsorted(self.ids, ids.contiguous()).clamp_(max=max(0, len(self.ids) - 1))

    def rows(
        self, tables: Mapping[str, Tables], of_rows: float, of_distilled: Mapping[str, float]
    ) -> dict[str, ModelRows]:
        """The rows of these models' tables, in the order of their bits."""
        self.of_rows = of_rows
        parts = []
        for _, items, bias in tables.values():
            assert bias is not None
            parts += [items.index_select(0, self._wanted), bias.index_select(0, self._wanted)[:, None]]
        received = self._exchange.route(torch.cat(parts, 1), self._receive, self._send)
        pieces = iter(received.split([part.shape[1] for part in parts], dim=1))
        return {
            name: ModelRows(
                self, bit, next(pieces).contiguous(), next(pieces)[:, 0].contiguous(), of_distilled.get(name, 0.0)
            )
            for bit, name in enumerate(tables)
        }

    def give_back(self, bit: int, grads: Tensor) -> tuple[Tensor, Tensor]:
        sent, received = (flags >> bit & 1 for flags in (self._flags, self._wanted_flags))
        counts = [
            [int(part.sum()) for part in marks.split(sizes)]
            for marks, sizes in ((sent, self._send), (received, self._receive))
        ]
        return self._wanted[received.bool()], self._exchange.route(grads[sent.bool()], *counts)
