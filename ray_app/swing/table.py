"""Rows of neighbours: how tasks hand them over, how they are stored, how they are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ray_app.artifacts import Folder
from ray_app.errors import ArtifactError


@dataclass(frozen=True)
class Rows:
    """Neighbours of some users or items, as one task makes them. L = lengths.sum()."""

    mains: np.ndarray
    """int32[r]: whose neighbours."""
    lengths: np.ndarray
    """int32[r]: how many each has."""
    indices: np.ndarray
    """int32[L]"""
    scores: np.ndarray
    """float32[L]"""
    common: np.ndarray
    """int32[L]"""
    work: np.ndarray
    """int64[r]: inner steps each row took, which is its cost on any machine."""

    @classmethod
    def pack(cls, mains: np.ndarray, kernel_rows: tuple[np.ndarray, ...]) -> Rows:
        """From a kernel's padded rows: lengths[r], then [r, k] neighbours, scores, common, and work[r]."""
        lengths, neighbours, scores, common, work = kernel_rows
        filled = np.arange(neighbours.shape[1]) < lengths[:, None]
        return cls(mains, lengths, neighbours[filled], scores[filled], common[filled], work)


@dataclass(frozen=True)
class NeighbourTable:
    """Neighbours in CSR form; each row in descending score, then ascending id."""

    indptr: np.ndarray
    """int64[n + 1]"""
    indices: np.ndarray
    """int32[pairs]"""
    scores: np.ndarray
    """float32[pairs]"""
    common: np.ndarray
    """int32[pairs]: users (of two items) or items (of two users) in common."""

    def of(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Neighbours, scores and common counts of row i (views)."""
        row = slice(self.indptr[i], self.indptr[i + 1])
        return self.indices[row], self.scores[row], self.common[row]

    @property
    def pairs(self) -> int:
        return len(self.indices)

    @classmethod
    def assemble(cls, n: int, parts: Iterable[Rows]) -> NeighbourTable:
        """One table of n rows from parts in any order; rows in no part are empty."""
        parts = list(parts)
        lengths = np.zeros(n, np.int64)
        for part in parts:
            lengths[part.mains] = part.lengths
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        table = cls(
            indptr,
            np.empty(indptr[-1], np.int32),
            np.empty(indptr[-1], np.float32),
            np.empty(indptr[-1], np.int32),
        )
        for part in parts:
            within = np.arange(len(part.indices)) - np.repeat(
                np.cumsum(part.lengths, dtype=np.int64) - part.lengths, part.lengths
            )
            target = np.repeat(indptr[part.mains], part.lengths) + within
            table.indices[target] = part.indices
            table.scores[target] = part.scores
            table.common[target] = part.common
        return table

    def save(self, folder: str | Path, prefix: str) -> None:
        """Write `<prefix>.<array>.npy` files, each atomically, into a folder or fsspec URI."""
        save_arrays(folder, prefix, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, folder: str | Path, prefix: str, mmap: bool = True) -> NeighbourTable:
        """Read what `save` wrote; with `mmap` the pages are shared between processes."""
        return cls(**load_arrays(folder, prefix, [field.name for field in fields(cls)], mmap))


def save_arrays(folder: str | Path, prefix: str, arrays: dict[str, np.ndarray]) -> None:
    target = Folder(folder)
    for name, array in arrays.items():
        with target.replacing(f"{prefix}.{name}.npy") as local, open(local, "wb") as file:
            np.save(file, array, allow_pickle=False)


def load_arrays(folder: str | Path, prefix: str, names: list[str], mmap: bool) -> dict[str, np.ndarray]:
    """Arrays by name. Raises ArtifactError where one is missing or damaged."""
    arrays = {}
    for name in names:
        path = Path(folder) / f"{prefix}.{name}.npy"
        try:
            # asarray: numba knows ndarray, not its memmap subclass
            arrays[name] = np.asarray(np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{path} is missing or damaged: run stage swing again") from error
    return arrays
