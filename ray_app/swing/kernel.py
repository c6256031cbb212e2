"""The numba kernels of Swing and of user similarity: serial, without the GIL, cached on disk.

All kernels live in this one file because numba's cache watches only the file of the function called: a
helper elsewhere could change without the cache noticing. Inputs are read-only arrays, so that every
process can work on the same shared memory; scratch comes from the caller or is made once per call.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NORMALIZE = {"none": 0, "max": 1, "product": 2, "sqrt": 3}


@njit(nogil=True, cache=True)
def mix(value):
    """splitmix64 (Steele et al. 2014): a bijection of uint64 that scatters neighbouring values."""
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(nogil=True, cache=True)
def sample(users, item, cap, seed):
    """At most `cap` of an item's users, in their order: those of the lowest hash of (seed, item, user).

    Uniform, and independent of row order and of the partition. The hash is a bijection of the user for
    a given item, so there are no ties.
    """
    if users.size <= cap:
        return users.copy()
    base = mix(mix(np.uint64(seed)) ^ np.uint64(item))
    hashes = np.empty(users.size, np.uint64)
    for a in range(users.size):
        hashes[a] = mix(base ^ np.uint64(users[a]))
    bar = np.sort(hashes)[cap - 1]
    return users[hashes <= bar]


@njit(nogil=True, cache=True)
def best(scores, ids, k):
    """Positions of the k best: descending score, then ascending id."""
    positions = np.arange(scores.size)
    if scores.size > k:
        bar = np.partition(scores, scores.size - k)[scores.size - k]
        positions = positions[scores >= bar]
    positions = positions[np.argsort(ids[positions])]
    return positions[np.argsort(-scores[positions], kind="mergesort")][:k]


@njit(nogil=True, cache=True)
def item_rows(mains, user_ptr, user_items, item_ptr, item_users, item_ids, weights,
              alpha2, cap, min_common, k, normalize, seed, local):  # fmt: skip
    """Swing rows of the items `mains`, item-centric: everything about one item stays in the L1 cache.

    Items are ranks in popularity order (`item_ids` maps back). For item i, every other item j gets the
    list of the *local* numbers of i's users who also have it. Then for each user a of i: pass 1 counts,
    over a's items, how often each later user b appears, which is |I_a ∩ I_b|; pass 2 adds
    w_a w_b / (alpha2 + |I_a ∩ I_b|) of those b to every j. `local` is a buffer whose (unsigned) type
    holds a local number; it grows as needed.

    Returns lengths int32[r], neighbours int32[r, k], scores float32[r, k], common int32[r, k] and work
    int64[r] (steps of the inner loops: what a row costs).
    """
    rows, n_items = mains.size, item_ptr.size - 1
    lengths, work = np.zeros(rows, np.int32), np.zeros(rows, np.int64)
    neighbours = np.zeros((rows, k), np.int32)
    scores = np.zeros((rows, k), np.float32)
    commons = np.zeros((rows, k), np.int32)
    count = np.zeros(n_items, np.int32)
    cursor, end = np.zeros(n_items, np.int64), np.zeros(n_items, np.int64)
    total_score = np.zeros(n_items, np.float64)
    touched, live = np.empty(n_items, np.int32), np.empty(n_items, np.int32)
    for row in range(rows):
        i = mains[row]
        users = sample(item_users[item_ptr[i] : item_ptr[i + 1]], item_ids[i], cap, seed)
        m, n_touched = users.size, 0
        for a in range(m):
            for p in range(user_ptr[users[a]], user_ptr[users[a] + 1]):
                j = user_items[p]
                if count[j] == 0:
                    touched[n_touched] = j
                    n_touched += 1
                count[j] += 1
        count[i] = 0
        listed = 0
        for t in range(n_touched):
            j = touched[t]
            if count[j] >= 2:
                cursor[j] = end[j] = listed
                listed += count[j]
        if listed > local.size:
            local = np.empty(2 * listed, local.dtype)
        for a in range(m):
            for p in range(user_ptr[users[a]], user_ptr[users[a] + 1]):
                j = user_items[p]
                if count[j] >= 2:
                    local[end[j]] = a
                    end[j] += 1
        shared, gain = np.empty(m, np.int32), np.empty(m, np.float64)
        weight = weights[users]
        steps = m * (m - 1) // 2 + 3 * listed
        for a in range(m - 1):
            shared[a + 1 :] = 1  # the main item itself
            n_live = 0
            for p in range(user_ptr[users[a]], user_ptr[users[a] + 1]):
                j = user_items[p]
                if count[j] >= 2:
                    cursor[j] += 1  # past a itself
                    if cursor[j] < end[j]:
                        live[n_live] = j
                        n_live += 1
                        steps += end[j] - cursor[j]
                        for q in range(cursor[j], end[j]):
                            shared[local[q]] += 1
            for b in range(a + 1, m):
                gain[b] = weight[a] * weight[b] / (alpha2 + shared[b])
            for t in range(n_live):
                j = live[t]
                added = 0.0
                for q in range(cursor[j], end[j]):
                    added += gain[local[q]]
                total_score[j] += added
        n_found = 0
        for t in range(n_touched):
            if count[touched[t]] >= max(2, min_common):
                live[n_found] = touched[t]
                n_found += 1
        found = live[:n_found]
        value = _normalised(total_score[found], i, found, item_ptr, m, normalize)
        top = best(value, item_ids[found], k)
        lengths[row] = top.size
        work[row] = steps
        for position in range(top.size):
            j = found[top[position]]
            neighbours[row, position] = item_ids[j]
            scores[row, position] = value[top[position]]
            commons[row, position] = count[j]
        for t in range(n_touched):
            count[touched[t]] = 0
            total_score[touched[t]] = 0.0
    return lengths, neighbours, scores, commons, work


@njit(nogil=True, cache=True)
def _normalised(raw, i, found, item_ptr, m, normalize):
    """Scores as float32; for `product` and `sqrt` a sampled sum is first scaled to all pairs of users."""
    value = np.empty(raw.size, np.float32)
    n = item_ptr[i + 1] - item_ptr[i]
    scale = 1.0 if m < 2 else (n * (n - 1.0)) / (m * (m - 1.0))
    highest = raw.max() if raw.size else 1.0
    for t in range(raw.size):
        if normalize == 0:
            value[t] = raw[t]
        elif normalize == 1:
            value[t] = raw[t] / highest
        else:
            share = raw[t] * scale / (n * (item_ptr[found[t] + 1] - item_ptr[found[t]]))
            value[t] = share if normalize == 2 else np.sqrt(share)
    return value


@njit(nogil=True, cache=True)
def unit_rows(pointer, items, strengths, timestamps, idf, half_life):
    """Rows x_ui = strength * 2^(-age / half_life) * idf_i, each divided by its Euclidean norm; float32.

    Age counts from the row's own latest event: a later reference would scale the whole row alike, which
    the norm takes out again.
    """
    unit = np.empty(items.size, np.float32)
    for row in range(pointer.size - 1):
        start, stop = pointer[row], pointer[row + 1]
        if start == stop:
            continue
        latest = timestamps[start:stop].max()
        square = 0.0
        for p in range(start, stop):
            x = strengths[p] * 2.0 ** ((timestamps[p] - latest) / half_life) * idf[items[p]]
            square += x * x
        norm = np.sqrt(square)
        for p in range(start, stop):
            x = strengths[p] * 2.0 ** ((timestamps[p] - latest) / half_life) * idf[items[p]]
            unit[p] = x / norm
    return unit


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _overlap(dense, items, x, shrinkage):
    """Shrunk cosine of a scattered row with another one, and the number of items in common.

    No branch, and sums in any order: the processor then takes several items at a time, which makes
    diversity affordable.
    """
    dot, n = np.float32(0), np.int32(0)
    for p in range(items.size):
        d = dense[items[p]]
        dot += d * x[p]
        n += np.int32(d != 0)
    return (dot * n / (n + shrinkage) if n else 0.0), n


@njit(nogil=True, cache=True)
def nearest(items, x, exclude, user_ptr, user_items, user_x, item_ptr, item_users, item_x,
            k, pool, min_common, shrinkage, threshold, diversity, dot, common, dense):  # fmt: skip
    """The k users most like one history (`items` ascending, unit row `x`), diversified.

    Postings give the `pool` best candidates; their similarity is then computed exactly from their own
    rows; maximal marginal relevance (Carbonell and Goldstein 1998) chooses k. The scratch arrays dot
    float32[n_users], common int32[n_users], dense float32[n_items] are zero on entry and on return.
    Returns users, similarities, common (descending similarity, then id) and the steps taken.
    """
    touched, n_touched, steps = np.empty(common.size, np.int32), 0, 0
    for h in range(items.size):
        steps += item_ptr[items[h] + 1] - item_ptr[items[h]]
        for p in range(item_ptr[items[h]], item_ptr[items[h] + 1]):
            v = item_users[p]
            if common[v] == 0:
                touched[n_touched] = v
                n_touched += 1
            common[v] += 1
            dot[v] += x[h] * item_x[p]
    candidates, rough, n = np.empty(n_touched, np.int32), np.empty(n_touched, np.float32), 0
    for t in range(n_touched):
        v = touched[t]
        if v != exclude and common[v] >= min_common:
            candidates[n] = v
            rough[n] = dot[v] * common[v] / (common[v] + shrinkage)
            n += 1
        dot[v], common[v] = 0, 0
    candidates = candidates[:n][best(rough[:n], candidates[:n], pool)]

    exact, shared = np.empty(candidates.size, np.float32), np.empty(candidates.size, np.int32)
    dense[items] = x
    for c in range(candidates.size):
        start, stop = user_ptr[candidates[c]], user_ptr[candidates[c] + 1]
        exact[c], shared[c] = _overlap(dense, user_items[start:stop], user_x[start:stop], shrinkage)
        steps += stop - start
    dense[items] = 0
    order = best(exact, candidates, candidates.size)
    order = order[exact[order] >= threshold]
    candidates, exact, shared = candidates[order], exact[order], shared[order]
    if candidates.size <= k:
        return candidates, exact, shared, steps

    chosen, closest = np.zeros(candidates.size, np.bool_), np.zeros(candidates.size, np.float32)
    for _ in range(k):
        pick, highest = -1, -np.inf
        for c in range(candidates.size):
            margin = diversity * exact[c] - (1 - diversity) * closest[c]
            if not chosen[c] and margin > highest:
                pick, highest = c, margin
        chosen[pick] = True
        if diversity == 1:
            continue
        start, stop = user_ptr[candidates[pick]], user_ptr[candidates[pick] + 1]
        dense[user_items[start:stop]] = user_x[start:stop]
        for c in range(candidates.size):
            if not chosen[c]:
                first, last = user_ptr[candidates[c]], user_ptr[candidates[c] + 1]
                near, _ = _overlap(dense, user_items[first:last], user_x[first:last], shrinkage)
                closest[c] = max(closest[c], near)
                steps += last - first
        dense[user_items[start:stop]] = 0
    return candidates[chosen], exact[chosen], shared[chosen], steps


@njit(nogil=True, cache=True)
def user_rows(mains, user_ptr, user_items, user_x, item_ptr, item_users, item_x,
              k, pool, min_common, shrinkage, threshold, diversity):  # fmt: skip
    """`nearest` for indexed users; same shapes as `item_rows`."""
    rows = mains.size
    lengths, work = np.zeros(rows, np.int32), np.zeros(rows, np.int64)
    neighbours = np.zeros((rows, k), np.int32)
    scores = np.zeros((rows, k), np.float32)
    commons = np.zeros((rows, k), np.int32)
    n_users, n_items = user_ptr.size - 1, item_ptr.size - 1
    dot, common = np.zeros(n_users, np.float32), np.zeros(n_users, np.int32)
    dense = np.zeros(n_items, np.float32)
    for row in range(rows):
        start, stop = user_ptr[mains[row]], user_ptr[mains[row] + 1]
        users, similarities, shared, steps = nearest(
            user_items[start:stop], user_x[start:stop], mains[row],
            user_ptr, user_items, user_x, item_ptr, item_users, item_x,
            k, pool, min_common, shrinkage, threshold, diversity, dot, common, dense,
        )  # fmt: skip
        lengths[row], work[row] = users.size, steps
        neighbours[row, : users.size] = users
        scores[row, : users.size] = similarities
        commons[row, : users.size] = shared
    return lengths, neighbours, scores, commons, work
