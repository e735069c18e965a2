"""Writing interactions to a file that `read` reads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from bidistill.data.files import replacing
from bidistill.data.interactions import Interactions
from bidistill.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def write_interactions(path: str | Path, interactions: Interactions) -> None:
    """Write the rows with their original ids: columns user_id, item_id and, if there are times, timestamp.

    path: ends in .csv, .tsv, .parquet or .npz. Written whole or not at all.
    Raises UserError for another ending or where it cannot be written.
    """
    columns = {
        "user_id": interactions.user_ids[interactions.users],
        "item_id": interactions.item_ids[interactions.items],
    }
    if interactions.times is not None:
        columns["timestamp"] = interactions.times
    kind = Path(path).suffix.lower()
    if kind not in (*SEPARATORS, ".parquet", ".npz"):
        raise UserError(f"{path}: cannot write the format {kind!r}; use .csv, .tsv, .parquet or .npz")
    with replacing(path) as temporary:
        if kind == ".npz":
            texts = {name: values.astype(str) if values.dtype == object else values for name, values in columns.items()}
            with temporary.open("wb") as file:
                np.savez(file, **texts)
            return
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        if kind == ".parquet":
            pq.write_table(table, temporary)
        else:
            pacsv.write_csv(table, temporary, pacsv.WriteOptions(delimiter=SEPARATORS[kind]))
