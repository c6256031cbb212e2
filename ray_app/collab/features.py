"""The collaborative vectors: one per user, per item and per (user, item) pair, at a moment.

`encode` computes all three for many (history, target) rows; training and serving call the same function,
the first with histories cut at each row's timestamp, the second with the history as it is now.

    user   rate, mean residual (all, last 5/20/100), rate of the last 10, counts and gaps, mean residual
           before this visit and what the visit has added to it, residual per feature, mean latent vector
           weighted by residual
    item   rate, effect, count, year, features, latent vector
    pair   Swing-weighted residual of the target's neighbours in the history, their mass liked and
           disliked, residual of the shared features, of near years, of similar content, latent product,
           the rates of both sides, what users of like taste thought of the target (`collab.opinions`), and
           what regression on the user's residuals expects (`collab.kriging`)

Residuals are label - item rate when it was rated (`collab.rolling`); sums are shrunk by pseudo-counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numba import njit

from ray_app.collab import kriging, opinions
from ray_app.collab.opinions import Crowd
from ray_app.swing.table import NeighbourTable

COUNTED = 12
"""Leading statistics of a pair that one pass over the history makes."""
USER_SCALARS, ITEM_SCALARS = 9, 6
PAIR_SCALARS = COUNTED + len(opinions.COLUMNS) + len(kriging.COLUMNS)
SCALARS = {"user": USER_SCALARS, "item": ITEM_SCALARS, "pair": PAIR_SCALARS}
"""How many leading entries of each vector are single statistics; then come features and latent vectors."""
VISIT = USER_SCALARS, USER_SCALARS + 1
"""Places in a user's vector, behind those, of the mean residual before the visit and of what it has added."""
USER_TOLD = USER_SCALARS + len(VISIT)
"""Where a user's residuals per feature begin."""
MAX_FEATURES = 32
DAY = 86400.0
PAUSE = 30 * DAY
"""Seconds without a rating after which the next one begins a visit."""


@dataclass(frozen=True)
class Catalogue:
    """Item content as arrays."""

    vocabulary: list[str]
    """Feature names, most frequent first, at most MAX_FEATURES."""
    indptr: np.ndarray
    """int64 [n_items + 1]"""
    features: np.ndarray
    """int32 [nnz] feature codes per item"""
    year: np.ndarray
    """float32 [n_items], 0 where unknown"""

    @classmethod
    def build(cls, features: list[list[str]], years: list[int | None]) -> Catalogue:
        counts: dict[str, int] = {}
        for names in features:
            for name in names:
                counts[name] = counts.get(name, 0) + 1
        vocabulary = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_FEATURES]
        code = {name: at for at, name in enumerate(vocabulary)}
        lists = [sorted({code[name] for name in names if name in code}) for names in features]
        indptr = np.cumsum([0, *map(len, lists)]).astype(np.int64)
        flat = np.array([at for row in lists for at in row], np.int32)
        return cls(vocabulary, indptr, flat, np.array([year or 0 for year in years], np.float32))

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """Binary [n_items, n_features]."""
        shape = (len(self.year), len(self.vocabulary))
        return sp.csr_matrix((np.ones(len(self.features)), self.features, self.indptr), shape=shape)


@dataclass(frozen=True)
class Histories:
    """Every user's ratings in time order, as CSR by user."""

    indptr: np.ndarray
    """int64 [n_users + 1]"""
    items: np.ndarray
    """int32 [n]"""
    labels: np.ndarray
    """float32 [n]"""
    residuals: np.ndarray
    """float32 [n]"""
    timestamps: np.ndarray
    """int64 [n]"""
    rows: np.ndarray
    """int64 [n]: the interaction each entry is"""

    @classmethod
    def build(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        labels: np.ndarray,
        residuals: np.ndarray,
        timestamps: np.ndarray,
        n_users: int,
    ) -> Histories:
        """From interactions sorted by time."""
        order = np.argsort(users, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=n_users))]).astype(np.int64)
        return cls(
            indptr,
            items[order].astype(np.int32),
            labels[order].astype(np.float32),
            residuals[order].astype(np.float32),
            timestamps[order].astype(np.int64),
            order.astype(np.int64),
        )

    def before(self, users: np.ndarray, timestamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) int64 [n] of each user's entries with an earlier timestamp."""
        start = self.indptr[users]
        end = np.empty(len(users), np.int64)
        _ends(self.indptr, self.timestamps, users, timestamps, end)
        return start, end


def dimensions(n_features: int, latent: int) -> dict[str, int]:
    """Length of each vector."""
    return {
        "user": USER_TOLD + n_features + latent,
        "item": ITEM_SCALARS + n_features + latent,
        "pair": PAIR_SCALARS,
    }


def encode(
    histories: Histories,
    users: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    targets: np.ndarray,
    timestamps: np.ndarray,
    item_statistics: np.ndarray,
    global_rate: np.ndarray,
    catalogue: Catalogue,
    latent: np.ndarray,
    swing: NeighbourTable | None,
    crowd: Crowd,
    prior: float,
    window: int,
) -> dict[str, np.ndarray]:
    """Vectors of n rows: {"user": [n, du], "item": [n, di], "pair": [n, dp]} float32.

    start, end: which history entries each row may see; item_statistics float64 [n, 3] (count, rate,
    effect of the target as of the row); global_rate float64 [n]; latent float32 [n_items, d] and swing:
    the snapshot in force (None: no neighbours yet); crowd: everyone's ratings, of which a row sees those
    before its timestamp; window: latest ratings of a user that `kriging` and `opinions` see. All rows of a
    call share one snapshot.
    """
    size = dimensions(len(catalogue.vocabulary), latent.shape[1])
    out = {name: np.zeros((len(targets), width), np.float32) for name, width in size.items()}
    n_items = len(catalogue.year)
    table = swing or NeighbourTable.assemble(n_items, [])
    _encode(
        histories.items,
        histories.labels,
        histories.residuals,
        histories.timestamps,
        start,
        end,
        targets,
        timestamps,
        item_statistics,
        global_rate,
        catalogue.indptr,
        catalogue.features,
        catalogue.year,
        latent,
        table.indptr,
        table.indices,
        table.scores,
        prior,
        np.zeros(n_items, np.float32),
        out["user"],
        out["item"],
        out["pair"],
    )
    told = histories.items, histories.residuals, start, end, targets
    likeminded, expected = np.split(out["pair"][:, COUNTED:], [len(opinions.COLUMNS)], axis=1)
    likeminded[:] = opinions.opinions(*told, timestamps, crowd, window)
    expected[:] = kriging.posterior(
        *told,
        catalogue.indptr,
        catalogue.features,
        catalogue.year,
        latent,
        window,
    )
    return out


@njit(cache=True, nogil=True)
def _ends(indptr, times, users, timestamps, end):
    for k in range(len(users)):
        low, high = indptr[users[k]], indptr[users[k] + 1]
        end[k] = low + np.searchsorted(times[low:high], timestamps[k])


@njit(cache=True, nogil=True, fastmath=True)
def _encode(
    h_items,
    h_labels,
    h_residuals,
    h_times,
    start,
    end,
    targets,
    timestamps,
    item_statistics,
    global_rate,
    f_indptr,
    f_codes,
    year,
    latent,
    s_indptr,
    s_indices,
    s_scores,
    prior,
    near,
    user_out,
    item_out,
    pair_out,
):
    d = latent.shape[1]
    n_features = user_out.shape[1] - USER_TOLD - d
    profile = np.zeros(n_features, np.float32)
    seen = np.zeros(n_features, np.float32)
    taste = np.zeros(d, np.float32)
    for k in range(len(targets)):
        i, now, first, last = targets[k], timestamps[k], start[k], end[k]
        n = last - first
        best = s_scores[s_indptr[i]] if s_indptr[i + 1] > s_indptr[i] else 1.0
        for at in range(s_indptr[i], s_indptr[i + 1]):
            near[s_indices[at]] = s_scores[at] / best
        profile[:] = 0
        seen[:] = 0
        taste[:] = 0
        likes = total = last5 = last20 = last100 = likes10 = 0.0
        earlier, n_earlier = 0.0, 0
        near_mass = near_residual = near_liked = near_disliked = near_best = 0.0
        year_mass = year_residual = content_mass = content_residual = 0.0
        for at in range(first, last):
            j, y, r = h_items[at], h_labels[at], h_residuals[at]
            age = last - at
            if at > first and h_times[at] - h_times[at - 1] > PAUSE:
                earlier, n_earlier = total, at - first
            likes += y
            total += r
            if age <= 5:
                last5 += r
            if age <= 10:
                likes10 += y
            if age <= 20:
                last20 += r
            if age <= 100:
                last100 += r
            shared = 0
            for fa in range(f_indptr[j], f_indptr[j + 1]):
                profile[f_codes[fa]] += r
                seen[f_codes[fa]] += 1
                for fb in range(f_indptr[i], f_indptr[i + 1]):
                    if f_codes[fa] == f_codes[fb]:
                        shared += 1
            union = f_indptr[j + 1] - f_indptr[j] + f_indptr[i + 1] - f_indptr[i] - shared
            if shared:
                overlap = shared / union
                content_mass += overlap
                content_residual += overlap * r
            if year[i] > 0 and year[j] > 0:
                w = np.exp(-abs(year[i] - year[j]) / 5.0)
                year_mass += w
                year_residual += w * r
            s = near[j]
            if s > 0:
                near_mass += s
                near_residual += s * r
                near_best = max(near_best, s)
                if y > 0:
                    near_liked += s
                else:
                    near_disliked += s
            for c in range(d):
                taste[c] += r * latent[j, c]
        for at in range(s_indptr[i], s_indptr[i + 1]):
            near[s_indices[at]] = 0
        if n and now - h_times[last - 1] > PAUSE:
            earlier, n_earlier = total, n
        g = global_rate[k]
        rate = (likes + prior * g) / (n + prior)
        u = user_out[k]
        u[0] = rate
        u[1] = total / (n + 5.0)
        u[2] = last5 / (min(n, 5) + 2.0)
        u[3] = last20 / (min(n, 20) + 3.0)
        u[4] = last100 / (min(n, 100) + 5.0)
        u[5] = (likes10 + 2.0 * g) / (min(n, 10) + 2.0)
        u[6] = np.log1p(n)
        u[7] = np.log1p((now - h_times[last - 1]) / DAY) if n else 6.0
        u[8] = np.log1p((now - h_times[first]) / DAY) if n else 0.0
        u[VISIT[0]] = earlier / (n_earlier + 5.0)
        u[VISIT[1]] = (total - earlier) / (n + 30.0)
        for f in range(n_features):
            u[USER_TOLD + f] = profile[f] / (seen[f] + 5.0)
        dot = 0.0
        for c in range(d):
            taste[c] /= n + 5.0
            u[USER_TOLD + n_features + c] = taste[c]
            dot += taste[c] * latent[i, c]
        v = item_out[k]
        v[0] = item_statistics[k, 1]
        v[1] = item_statistics[k, 2]
        v[2] = np.log1p(item_statistics[k, 0])
        v[3] = (year[i] - 1980.0) / 20.0 if year[i] > 0 else 0.0
        v[4] = 1.0 if year[i] > 0 else 0.0
        v[5] = f_indptr[i + 1] - f_indptr[i]
        match, match_seen = 0.0, 0.0
        for at in range(f_indptr[i], f_indptr[i + 1]):
            f = f_codes[at]
            v[ITEM_SCALARS + f] = 1.0
            match += profile[f] / (seen[f] + 5.0)
            match_seen += seen[f]
        n_own = f_indptr[i + 1] - f_indptr[i]
        for c in range(d):
            v[ITEM_SCALARS + n_features + c] = latent[i, c]
        p = pair_out[k]
        p[0] = near_residual / (near_mass + 0.2)
        p[1] = near_liked / (near_mass + 0.2)
        p[2] = near_disliked / (near_mass + 0.2)
        p[3] = np.log1p(near_mass)
        p[4] = near_best
        p[5] = match / n_own if n_own else 0.0
        p[6] = np.log1p(match_seen)
        p[7] = content_residual / (content_mass + 2.0)
        p[8] = year_residual / (year_mass + 3.0)
        p[9] = dot
        p[10] = rate - g
        p[11] = item_statistics[k, 2]
