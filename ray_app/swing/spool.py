"""Neighbours as they arrive, on disk: memory for a block of them, never for the whole table.

Tasks finish in any order. A `Spool` appends each block to unnamed files and remembers where every row
begins; `save` and `write_parquet` then read the rows in order. What they write does not depend on the
order of arrival, and is what `NeighbourTable.assemble` and `NeighbourTable.save` would have made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ray_app.artifacts import Folder
from ray_app.swing.items import pointer
from ray_app.swing.table import Rows, save_arrays

ARRAYS = {"indices": np.dtype(np.int32), "scores": np.dtype(np.float32), "common": np.dtype(np.int32)}
CHUNK = 1 << 18
"""Pairs read back at a time, and in a row group of a Parquet file: 3 MB of numbers."""
ITEM_COLUMNS = ("item_id", "score", "common_users")
USER_COLUMNS = ("user_id", "similarity", "common_items")


def labelled(rows: Rows, ids: pl.Series, columns: tuple[str, str, str]) -> pl.DataFrame:
    """One line a pair: <id>, neighbour_id, <score>, <common>, with ids in place of codes."""
    main, score, common = columns
    return pl.DataFrame(
        {
            main: ids.gather(np.repeat(rows.mains, rows.lengths)),
            "neighbour_id": ids.gather(rows.indices),
            score: rows.scores,
            common: rows.common,
        }
    )


class Spool:
    """Rows 0..n-1, each added at most once; a row that is not added is empty.

    The files lie in the folder for temporary files (TMPDIR) and end with the process, however it ends.
    """

    def __init__(self, n: int, chunk: int = CHUNK):
        """`chunk` is the number of pairs read back at a time: what memory a table takes."""
        self.work = np.zeros(n, np.int64)
        """int64[n]: inner steps each row took."""
        self.pairs = 0
        self._chunk = chunk
        self._starts, self._lengths = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._files = {name: _temporary() for name in ARRAYS}

    def add(self, rows: Rows) -> None:
        """Append a block."""
        ends = np.cumsum(rows.lengths, dtype=np.int64)
        self._starts[rows.mains] = self.pairs + ends - rows.lengths
        self._lengths[rows.mains] = rows.lengths
        self.work[rows.mains] = rows.work
        for name, dtype in ARRAYS.items():
            self._files[name].write(np.ascontiguousarray(getattr(rows, name), dtype).data)
        self.pairs += len(rows.indices)

    def chunks(self) -> Iterator[Rows]:
        """All rows in order, about `chunk` pairs at a time."""
        arrays = {name: self._mapped(name) for name in ARRAYS}
        ends = np.cumsum(self._lengths)
        first = 0
        while first < len(ends):
            before = ends[first] - self._lengths[first]
            stop = max(first + 1, int(np.searchsorted(ends, before + self._chunk, side="right")))
            lengths = self._lengths[first:stop]
            within = np.arange(ends[stop - 1] - before) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            at = np.repeat(self._starts[first:stop], lengths) + within
            yield Rows(
                np.arange(first, stop, dtype=np.int32),
                lengths.astype(np.int32),
                arrays["indices"][at],
                arrays["scores"][at],
                arrays["common"][at],
                self.work[first:stop],
            )
            first = stop

    def save(self, folder: str | Path, prefix: str) -> None:
        """Write the files of a `NeighbourTable`, each atomically, into a folder or fsspec URI."""
        target = Folder(folder)
        with ExitStack() as open_files:
            files = {}
            for name, dtype in ARRAYS.items():
                local = open_files.enter_context(target.replacing(f"{prefix}.{name}.npy"))
                files[name] = open_files.enter_context(open(local, "wb"))
                header = {"descr": dtype.str, "fortran_order": False, "shape": (self.pairs,)}
                np.lib.format.write_array_header_1_0(files[name], header)
            for rows in self.chunks():
                for name, file in files.items():
                    file.write(getattr(rows, name).data)
        save_arrays(folder, prefix, {"indptr": pointer(self._lengths)})

    def write_parquet(self, path: str | Path, ids: pl.Series, columns: tuple[str, str, str]) -> None:
        """Write `labelled` pairs to a local file, a row group at a time."""
        schema = _arrow(labelled(EMPTY, ids, columns)).schema
        with pq.ParquetWriter(path, schema, compression="zstd") as file:
            for rows in self.chunks():
                file.write_table(_arrow(labelled(rows, ids, columns)))

    def _mapped(self, name: str) -> np.ndarray:
        if not self.pairs:  # an empty file cannot be mapped
            return np.empty(0, ARRAYS[name])
        self._files[name].flush()
        return np.memmap(self._files[name], ARRAYS[name], "r", shape=(self.pairs,))


EMPTY = Rows(*(np.empty(0, dtype) for dtype in (np.int32, np.int32, *ARRAYS.values(), np.int64)))


def _temporary() -> BinaryIO:
    return cast(BinaryIO, tempfile.TemporaryFile())


def _arrow(frame: pl.DataFrame):
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
