"""What a user's own ratings say about a target: Gaussian-process regression of the residuals.

Known as kriging in geostatistics; Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006),
algorithm 2.1. A user's residuals r (label - item rate when it was rated) are noisy readings of a taste
that is alike for alike items; with K the kernel matrix of the history and k its row for the target

    mean = k (K + noise I)^-1 r          sd^2 = k(target, target) - k (K + noise I)^-1 k'

    kernel(i, j) =   level                              the user rates high or low
                   + drift    * exp(-steps / length)    the mood of the hour
                   + features * cosine of the feature sets
                   + year     * exp(-years / span)
                   + latent   * cosine of the latent vectors, not below 0

Unlike a weighted mean of neighbours it does not count two alike ratings twice, and it knows how much it
knows. The mean is a sum over the kernel's terms, each of which is given too.

The factorisation grows by one row per rating, so all rows of a user cost little more than the last one.
A row sees the latest ratings of its history only, three quarters of `window` up to all of it: the first
that is seen moves on in steps, and each step starts a new factorisation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ray_app.swing.kernel import population  # an instruction: no cache of this file can outlive it

FADE = 256
"""Years apart whose term is computed beforehand."""
COLUMNS = ("mean", "level", "drift", "features", "year", "latent", "sd")


class Kernel(NamedTuple):
    """Variances of the terms in squared label units, and their lengths.

    Chosen by the squared error of one-step-ahead predictions on the training months of MovieLens-1M.
    """

    level: float = 0.005
    drift: float = 0.02
    drift_length: float = 59.0
    """Ratings"""
    features: float = 0.007
    year: float = 0.02
    year_span: float = 31.0
    """Years"""
    latent: float = 0.014
    noise: float = 0.2


KERNEL = Kernel()


def posterior(
    items: np.ndarray,
    residuals: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    targets: np.ndarray,
    indptr: np.ndarray,
    features: np.ndarray,
    year: np.ndarray,
    latent: np.ndarray,
    window: int,
    kernel: Kernel = KERNEL,
) -> np.ndarray:
    """float32 [n, 7], columns as in `COLUMNS`, of n rows.

    items int32 [h], residuals float32 [h]: histories one after the other; row r sees start[r]:end[r] of
    them. targets int32 [n]. (indptr, features): CSR list of feature codes (below 64) per item; year float32
    [n_items], whole, 0 where unknown; latent float32 [n_items, d].
    """
    out = np.zeros((len(targets), len(COLUMNS)), np.float32)
    longest = int(min((end - start).max(initial=0), window))
    order = np.lexsort((end, start))
    history = (items, residuals, start, end)
    _posterior(history, targets, order, (indptr, features, year, latent), window, longest, kernel, out)
    return out


@njit(cache=True, nogil=True)
def _first_seen(start, end, window):
    step = max(window // 4, 1)
    return start if end - start <= window else start + (end - start - window + step - 1) // step * step


@njit(cache=True, nogil=True, fastmath=True)
def _posterior(history, targets, order, content, window, longest, kernel, out):
    items, residuals, start, end = history
    latent = content[3]
    factor = np.empty((longest, longest))  # lower Cholesky factor of K + noise I
    solved, weight, half = np.empty(longest), np.empty(longest), np.empty(longest)
    own = np.empty((longest, latent.shape[1]), np.float32)  # unit latent vectors of the history
    bits, widths, years = np.empty(longest, np.uint64), np.empty(longest), np.empty(longest, np.float32)
    drift = kernel.drift * np.exp(-np.arange(longest + 1) / kernel.drift_length)
    fade = kernel.year * np.exp(-np.arange(FADE) / kernel.year_span)
    seen = (own, bits, widths, years, drift, fade)
    at = np.empty(latent.shape[1], np.float32)
    near, parts = np.empty((4, longest)), np.empty(4)
    first, known = -1, 0
    for row in order:
        begin = _first_seen(start[row], end[row], window)
        n = end[row] - begin
        if begin != first or n < known:
            first, known = begin, 0
        grown = n > known
        for x in range(known, n):
            i = items[first + x]
            _unit(latent[i], own[x])
            _terms(seen, x, i, own[x], content, kernel, near)
            bits[x], widths[x] = _bits(content[0], content[1], i), content[0][i + 1] - content[0][i]
            years[x] = content[2][i]
            for q in range(x):
                total = kernel.level + near[0, q] + near[1, q] + near[2, q] + near[3, q]
                for m in range(q):
                    total -= factor[x, m] * factor[q, m]
                factor[x, q] = total / factor[q, q]
            total = _self(i, content, kernel) + kernel.noise
            value = residuals[first + x]
            for m in range(x):
                total -= factor[x, m] * factor[x, m]
                value -= factor[x, m] * solved[m]
            factor[x, x] = np.sqrt(total)
            solved[x] = value / factor[x, x]
        known = n
        if grown:
            weight[:n] = solved[:n]
            for x in range(n - 1, -1, -1):
                weight[x] /= factor[x, x]
                for m in range(x):
                    weight[m] -= factor[x, m] * weight[x]
        i = targets[row]
        _unit(latent[i], at)
        _terms(seen, n, i, at, content, kernel, near)
        spread, total = _self(i, content, kernel), 0.0
        parts[:] = 0
        for q in range(n):
            total += weight[q]
            for term in range(4):
                parts[term] += near[term, q] * weight[q]
            value = kernel.level + near[0, q] + near[1, q] + near[2, q] + near[3, q]
            for m in range(q):
                value -= factor[q, m] * half[m]
            half[q] = value / factor[q, q]
            spread -= half[q] * half[q]
        out[row, 0] = kernel.level * total + parts.sum()
        out[row, 1] = kernel.level * total
        out[row, 2:6] = parts
        out[row, 6] = np.sqrt(max(spread, 0.0))


@njit(cache=True, nogil=True)
def _unit(vector, out):
    norm = max(np.sqrt((vector * vector).sum()), np.float32(1e-12))
    for c in range(out.size):
        out[c] = vector[c] / norm


@njit(cache=True, nogil=True)
def _self(i, content, kernel):
    """kernel(i, i), without the noise."""
    indptr, _, year, latent = content
    total = kernel.level + kernel.drift
    if indptr[i + 1] > indptr[i]:
        total += kernel.features
    if year[i] > 0:
        total += kernel.year
    if np.any(latent[i] != 0):
        total += kernel.latent
    return total


@njit(cache=True, nogil=True, fastmath=True)
def _terms(seen, n, i, at, content, kernel, near):
    """near[0:4, :n]: drift, features, year and latent terms of item i, rated n-th, with the n before it."""
    own, bits, widths, years, drift, fade = seen
    indptr, features, year, _ = content
    mine, width, when = _bits(indptr, features, i), float(indptr[i + 1] - indptr[i]), year[i]
    for q in range(n):
        near[0, q] = drift[n - q]
        both = population(mine & bits[q])
        near[1, q] = kernel.features * (both / np.sqrt(width * widths[q])) if both else 0.0
    for q in range(n):
        near[2, q] = 0.0
        if when > 0 and years[q] > 0:
            apart = np.int64(abs(when - years[q]))
            near[2, q] = fade[apart] if apart < FADE else kernel.year * np.exp(-apart / kernel.year_span)
    for q in range(n):
        alike = 0.0
        for c in range(own.shape[1]):
            alike += at[c] * own[q, c]
        near[3, q] = kernel.latent * max(alike, 0.0)


@njit(cache=True, nogil=True)
def _bits(indptr, features, i):
    """The feature codes of an item as bits of a uint64."""
    bits = np.uint64(0)
    for at in range(indptr[i], indptr[i + 1]):
        bits |= np.uint64(1) << np.uint64(features[at])
    return bits
