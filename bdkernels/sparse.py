"""The update alone: the optimizer's rule on rows whose gradients the caller has, such as those that other processes sent."""

import torch
from torch import Tensor

from bdkernels import checks
from bdkernels.backends.reference import update_rows
from bdkernels.optim import RowOptimizer


def sparse_step(optimizer: RowOptimizer, **rows: tuple[Tensor, Tensor]) -> None:
    """One step of the optimizer on the named rows of its tables, in place: what `fused_step` does after the gradient.

    Gradients of equal ids are summed, in the order in which they stand (on a GPU in any), before the rule is applied once to the
    row. A table that is not named stays as it is. On an error nothing has changed.

    Args:
        optimizer: `SGD`, `Adagrad` or `SparseAdam`; its step counts by one, also where no row is named.
        rows: of "user_table", "item_table" and "item_bias" the row numbers [n] int64 and gradients [n, d], of the bias [n], of
            the tables' dtype and device.

    Raises:
        ValueError: a table that the optimizer does not have, or a wrong shape, dtype, device or id.
    """
    checks.instance("optimizer", optimizer, RowOptimizer)
    tables = {name: table.detach() for name, table in optimizer.tables().items()}
    each = len(optimizer.names)
    found = optimizer.user_table, optimizer.item_table, optimizer.item_bias
    checks.tables(*found)
    checks.in_place(*found)
    checks.state(list(tables.values()), optimizer.state, each)
    for name, (ids, grads) in tuple(rows.items()):
        checks.choice("rows", name, tuple(tables))
        table = tables[name]
        checks.tensor(f"{name}: ids", ids, ("n",), (torch.int64,), table.device)
        checks.tensor(f"{name}: grads", grads, (ids.shape[0], *table.shape[1:]), (table.dtype,), table.device)
        rows[name] = checks.own_ids(f"{name}: ids", ids, table.shape[0]), grads
    checks.own_memory(tables, optimizer.state)
    rule = optimizer.rule()
    checks.rule(*rule)
    with torch.no_grad():
        for i, (name, table) in enumerate(tables.items()):
            if name in rows:
                update_rows(table, optimizer.state[i * each : (i + 1) * each], *rows[name], rule)
    optimizer.step += 1
