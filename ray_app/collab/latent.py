"""Latent item vectors from co-occurrence: truncated SVD of the positive PMI matrix.

Levy & Goldberg, "Neural Word Embedding as Implicit Matrix Factorization" (2014), on item-item counts of
common users. No label enters. Vectors of consecutive snapshots are aligned by an orthogonal rotation
(Procrustes), so that one projector can read them all. Items without co-occurrence get the mean vector of
the items that share their features, never zeros.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

MIN_COMMON = 3
"""Pairs with fewer common users carry no PMI."""


def item_vectors(
    users: np.ndarray,
    items: np.ndarray,
    n_users: int,
    n_items: int,
    dimensions: int,
    feature_matrix: sp.csr_matrix,
    previous: np.ndarray | None,
    seed: int,
) -> np.ndarray:
    """float32 [n_items, dimensions], mean row norm 1; a small catalogue leaves the last dimensions 0.

    users, items int [n] (the interactions known so far); feature_matrix [n_items, n_features] binary;
    previous: the vectors of the snapshot before, to align with.
    """
    x = sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=(n_users, n_items))
    x.data[:] = 1.0
    common = (x.T @ x).tocoo()
    keep = (common.row != common.col) & (common.data >= MIN_COMMON)
    row, col, count = common.row[keep], common.col[keep], common.data[keep].astype(np.float64)
    vectors = np.zeros((n_items, dimensions))
    rank = min(dimensions, n_items - 1)
    if len(count) > rank:
        degree = np.bincount(row, weights=count, minlength=n_items)
        pmi = np.log(count * degree.sum() / (degree[row] * degree[col]))
        positive = pmi > 0
        matrix = sp.csr_matrix(
            (pmi[positive], (row[positive], col[positive])), shape=(n_items, n_items), dtype=np.float64
        )
        if matrix.nnz > rank:
            left, strength, _ = svds(matrix, k=rank, rng=np.random.default_rng(seed))
            vectors[:, :rank] = np.asarray(left)[:, ::-1] * np.sqrt(strength[::-1])
    vectors = _fill_cold(vectors, feature_matrix)
    norm = np.linalg.norm(vectors, axis=1).mean()
    vectors = vectors / norm if norm > 0 else vectors
    if previous is not None:
        vectors = vectors @ _rotation(vectors, previous)
    return vectors.astype(np.float32)


def _fill_cold(vectors: np.ndarray, feature_matrix: sp.csr_matrix) -> np.ndarray:
    known = np.linalg.norm(vectors, axis=1) > 1e-9
    if known.all() or not known.any():
        return vectors
    weights = feature_matrix.T @ sp.diags(known.astype(np.float64))
    totals = np.asarray(weights.sum(axis=1)).ravel()
    centroids = np.asarray(weights @ vectors) / np.maximum(totals, 1)[:, None]
    counts = np.asarray(feature_matrix.sum(axis=1)).ravel()
    content = np.asarray(feature_matrix @ centroids) / np.maximum(counts, 1)[:, None]
    content[counts == 0] = vectors[known].mean(axis=0)
    return np.where(known[:, None], vectors, content)


def _rotation(vectors: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """The orthogonal matrix R that minimises |vectors R - previous| (Schönemann, 1966)."""
    u, _, vt = np.linalg.svd(vectors.T @ previous)
    return u @ vt
