"""The numba kernels of Swing and of user similarity: serial, without the GIL, cached on disk.

All kernels live in this one file because numba's cache watches only the file of the function called: a
helper elsewhere could change without the cache noticing. Inputs are read-only arrays, so that every
process can work on the same shared memory; scratch comes from the caller or is made once per call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils

NORMALIZE = {"none": 0, "max": 1, "product": 2, "sqrt": 3}
DENSE, WORDS = 12, 8
"""Measured: a bit mask beats a list from about one user in twelve on; 512 of them fit the L2 cache."""
PAIRS, HASH = 1 << 15, np.int64(-7046029254386353131)
"""Similarities of pairs of users that are kept at most; what spreads their keys (Knuth's golden ratio)."""
intrinsic: Any = extending.intrinsic  # type checkers take its results for functions of the typing context


@intrinsic
def population(_context, _bits):
    """Number of ones of a uint64: one instruction, which LLVM also vectorises."""
    return types.uint64(types.uint64), lambda context, builder, sig, args: builder.ctpop(args[0])


@intrinsic
def masked_sum(_context, values, bits, first, last):
    """Sum of float64 values[8 * c + t] where bit t of uint8 bits[c] is one, for c in [first, last).

    In LLVM's own vectors of 8, since no loop that one can write becomes a masked addition.
    """

    def build(context, builder, sig, args):
        vector = ir.VectorType(ir.DoubleType(), 8)
        lanes, zero = ir.VectorType(ir.IntType(1), 8), ir.Constant(vector, [0.0] * 8)
        data, flags = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(sig.args[:2], args[:2], strict=True)
        )
        data = builder.bitcast(data, vector.as_pointer())
        total = cgutils.alloca_once_value(builder, zero)
        one = ir.Constant(ir.IntType(64), 1)
        with cgutils.for_range_slice(builder, args[2], args[3], one, one.type) as (chunk, _):
            value = builder.load(builder.gep(data, [chunk]), align=8)
            chosen = builder.bitcast(builder.load(builder.gep(flags, [chunk])), lanes)
            added = builder.select(chosen, value, zero)
            builder.store(builder.fadd(builder.load(total), added), total)
        parts = builder.load(total)
        result = ir.Constant(ir.DoubleType(), 0.0)
        for lane in range(8):
            result = builder.fadd(result, builder.extract_element(parts, ir.Constant(ir.IntType(32), lane)))
        return result

    return types.float64(values, bits, first, last), build


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
def item_rows(mains, user_ptr, user_items, roots, item_ptr, item_users, item_ids, weights,
              alpha2, cap, min_common, k, normalize, seed, local: np.ndarray, part, partial):  # fmt: skip
    """Swing rows of the items `mains`, item-centric: everything about one item stays in the caches.

    Items are ranks in popularity order (`item_ids` maps back). For item i, every other item j gets the
    list of the *local* numbers of i's users who also have it. Then for each user a of i: pass 1 counts,
    over a's items, how often each later user b appears, which is |I_a ∩ I_b|; pass 2 adds
    w_a w_b / (alpha2 + |I_a ∩ I_b|) of those b to every j. Items that at least 1 in `DENSE` of i's users
    have, up to 64 * `WORDS` of them, are bit masks instead of lists: pass 1 is then a population count,
    pass 2 a sum under a mask. `local` is a buffer whose (unsigned) type holds a local number; it grows.

    `roots` float32[pairs] along `user_items` holds the square roots of the interactions' strengths, or
    nothing where all are 1. `part` = (number, of how many) takes only that share of the users a, of equal
    numbers of pairs. Unless `partial` is empty, the sums are added to it (float64[n_items]) and no rows made.

    Returns lengths int32[r], neighbours int32[r, k], scores float32[r, k], common int32[r, k] and work
    int64[r] (steps of the inner loops: what a row costs).
    """
    rows, n_items = mains.size, item_ptr.size - 1
    made = _empty_rows(rows, k)
    work = made[4]
    count, place = np.zeros(n_items, np.int32), np.zeros((n_items, 2), np.int32)
    total, touched = np.zeros(n_items), np.empty(n_items + 1, np.int32)
    starts, stops, owner = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32)
    root = np.empty(0, np.float32)
    dense, dense_at = np.empty(64 * WORDS, np.int32), np.empty(64 * WORDS, np.int32)
    most = 0
    for i in mains:
        most = max(most, min(cap, item_ptr[i + 1] - item_ptr[i]))
    masks, bits = np.empty((WORDS, most), np.uint64), np.empty((64 * WORDS, most // 8 + 1), np.uint8)
    shared, gain = np.empty(most, np.int32), np.empty(8 * (most // 8 + 1), np.float64)
    main_root, entries = np.ones(most, np.float32), np.empty(most + 1, np.int64)
    inverse = 1.0 / (alpha2 + np.arange(1, _longest(user_ptr) + 2))
    for row in range(rows):
        i = mains[row]
        users = sample(item_users[item_ptr[i] : item_ptr[i + 1]], item_ids[i], cap, seed)
        m = users.size
        n_touched = _count_items(users, user_ptr, user_items, count, touched)
        listed, n_dense = 0, 0
        for t in range(n_touched):
            j = touched[t]
            place[j, 0] = listed
            listed += count[j]
            place[j, 1] = listed
            if j == i:
                place[j, 1] = 0  # the end of a list that gives no entries
            elif m >= 64 and count[j] * DENSE >= m and n_dense < dense.size and not roots.size:
                place[j, 1] = 0
                dense[n_dense], dense_at[n_dense] = j, listed - count[j]
                n_dense += 1
        if listed > local.size:
            local = np.empty(listed + listed // 4, local.dtype)
        if listed > starts.size:
            size = listed + listed // 4
            starts, stops, owner = (
                np.empty(size, np.int32),
                np.empty(size, np.int32),
                np.empty(size, np.int32),
            )
            root = np.empty(size if roots.size else 0, np.float32)

        # an entry (start, stop, j) of user a: the part of j's list that comes after a
        n, pairs = 0, 0
        for a in range(m):
            entries[a] = n
            for p in range(user_ptr[users[a]], user_ptr[users[a] + 1]):
                j = user_items[p]
                at = place[j, 0] + 1
                place[j, 0] = at
                local[at - 1] = a
                starts[n], stops[n], owner[n] = at, place[j, 1], j
                n += at < place[j, 1]
                if roots.size:
                    root[at - 1] = roots[p]
                    if j == i:
                        main_root[a] = roots[p]
        entries[m] = n
        words, chunks = (n_dense + 63) // 64, m // 8 + 1
        masks[:words, :m] = 0
        bits[:n_dense, :chunks] = 0
        for d in range(n_dense):
            for q in range(dense_at[d], dense_at[d] + count[dense[d]]):
                a = local[q]
                masks[d >> 6, a] |= np.uint64(1) << np.uint64(d & 63)
                bits[d, a >> 3] |= np.uint8(1 << (a & 7))

        weight = weights[users] * main_root[:m]
        gain[: 8 * chunks] = 0
        first, last = _share(m, part[0], part[1])
        for a in range(first, last):
            shared[a + 1 : m] = 0  # and `inverse` starts at 1: they share i itself
            for w in range(words):
                mine = masks[w, a]
                for b in range(a + 1, m):
                    shared[b] += np.int32(population(mine & masks[w, b]))
            for e in range(entries[a], entries[a + 1]):
                pairs += stops[e] - starts[e]
                for q in range(starts[e], stops[e]):
                    shared[local[q]] += 1
            gain[a] = 0
            for b in range(a + 1, m):
                gain[b] = weight[a] * weight[b] * inverse[shared[b]]
            for e in range(entries[a], entries[a + 1]):
                even, odd, q, stop = 0.0, 0.0, starts[e], stops[e]
                if roots.size:
                    for r in range(q, stop):
                        even += gain[local[r]] * root[r]
                    even *= root[q - 1]
                else:
                    while q + 1 < stop:  # two sums: an addition need not wait for the one before
                        even += gain[local[q]]
                        odd += gain[local[q + 1]]
                        q += 2
                    if q < stop:
                        even += gain[local[q]]
                total[owner[e]] += even + odd
            for w in range(words):
                mine = masks[w, a]
                while mine != 0:
                    lowest = population((mine - np.uint64(1)) & ~mine)
                    d = np.int64(lowest) + 64 * w
                    total[dense[d]] += masked_sum(gain, bits[d], a // 8, chunks)
                    mine &= mine - np.uint64(1)
                    pairs += chunks - a // 8
        work[row] = 3 * listed + (last - first) * (2 * m - first - last - 1) // 2 * (1 + words) + pairs
        if partial.size == 0:
            _finish(made, row, i, m, touched[:n_touched], count, total,
                    item_ptr, item_ids, min_common, k, normalize)  # fmt: skip
        else:
            partial += total
        for t in range(n_touched):
            count[touched[t]] = 0
            total[touched[t]] = 0
    return made


@njit(nogil=True, cache=True)
def pair_sums(user_ptr, user_items, item_ptr, item_users, weights, alpha2, common, sums):
    """Add the Swing sums of all items, user-centric, to `sums` float64[n_items, n_items] (above the
    diagonal). No user cap.

    For each user u: over u's items, which later users v have them too; that lists I_u ∩ I_v of every v.
    Then each v adds its one gain to every pair of its list, in a block of u's own items, which is added
    to `sums` once per user. So every pair of users is counted once, and every update made once.
    `common` is a buffer whose (unsigned) type holds a position within a user's items; it grows.
    Returns the number of updates.
    """
    n_users = user_ptr.size - 1
    count, place = np.zeros(n_users, np.int32), np.empty(n_users, np.int64)
    touched, cursor = np.empty(n_users + 1, np.int32), item_ptr[:-1].copy()
    longest, updates = _longest(user_ptr), 0
    inverse = 1.0 / (alpha2 + np.arange(1, longest + 2))
    scratch = np.zeros(longest * longest)
    for u in range(n_users):
        items = user_items[user_ptr[u] : user_ptr[u + 1]]
        m, n_touched, at = items.size, 0, 0
        block = scratch[: m * m].reshape(m, m)
        for i in items:
            cursor[i] += 1  # past u itself
            for t in range(cursor[i], item_ptr[i + 1]):
                v = item_users[t]
                touched[n_touched] = v
                n_touched += count[v] == 0
                count[v] += 1
        for t in range(n_touched):
            place[touched[t]] = at
            at += count[touched[t]]
        if at > common.size:
            common = np.empty(at + at // 4, common.dtype)
        for p in range(m):
            for t in range(cursor[items[p]], item_ptr[items[p] + 1]):
                v = item_users[t]
                common[place[v]] = p
                place[v] += 1
        at = 0
        for t in range(n_touched):
            v = touched[t]
            n = count[v]
            count[v] = 0
            gain = weights[u] * weights[v] * inverse[n - 1]
            updates += n * (n - 1) // 2
            for x in range(at, at + n - 1):
                row = np.uint64(common[x]) * np.uint64(m)
                for y in range(x + 1, at + n):
                    scratch[row + np.uint64(common[y])] += gain
            at += n
        for p in range(m):
            for q in range(p + 1, m):
                sums[items[p], items[q]] += block[p, q]
        block[:] = 0
    return updates


@njit(nogil=True, cache=True)
def mirror(sums):
    """Copy what is above the diagonal of float64[n, n] below it, tile by tile (columns miss the cache)."""
    n = sums.shape[0]
    for top in range(0, n, 32):
        for left in range(top, n, 32):
            for i in range(top, min(top + 32, n)):
                for j in range(max(left, i + 1), min(left + 32, n)):
                    sums[j, i] = sums[i, j]


@njit(nogil=True, cache=True)
def summed_rows(mains, sums, user_ptr, user_items, item_ptr, item_users, item_ids,
                cap, min_common, k, normalize, seed):  # fmt: skip
    """Swing rows of the items `mains` from their sums float64[r, n_items]; returns what `item_rows` does."""
    n_items = item_ptr.size - 1
    made = _empty_rows(mains.size, k)
    count, touched = np.zeros(n_items, np.int32), np.empty(n_items + 1, np.int32)
    for row in range(mains.size):
        i = mains[row]
        users = sample(item_users[item_ptr[i] : item_ptr[i + 1]], item_ids[i], cap, seed)
        n_touched = _count_items(users, user_ptr, user_items, count, touched)
        for t in range(n_touched):
            made[4][row] += count[touched[t]]
        _finish(made, row, i, users.size, touched[:n_touched], count, sums[row],
                item_ptr, item_ids, min_common, k, normalize)  # fmt: skip
        for t in range(n_touched):
            count[touched[t]] = 0
    return made


@njit(nogil=True, cache=True)
def _empty_rows(rows, k):
    return (np.zeros(rows, np.int32), np.zeros((rows, k), np.int32), np.zeros((rows, k), np.float32),
            np.zeros((rows, k), np.int32), np.zeros(rows, np.int64))  # fmt: skip


@njit(nogil=True, cache=True)
def _longest(pointer):
    longest = 0
    for row in range(pointer.size - 1):
        longest = max(longest, pointer[row + 1] - pointer[row])
    return longest


@njit(nogil=True, cache=True)
def _share(m, number, parts):
    """Users a in [first, last) of one of `parts` shares with equal numbers of pairs (a, b), b > a."""
    first = m - np.int64(np.ceil(m * np.sqrt(1 - number / parts)))
    last = m - np.int64(np.ceil(m * np.sqrt(1 - (number + 1) / parts)))
    return first, last


@njit(nogil=True, cache=True)
def _count_items(users, user_ptr, user_items, count, touched):
    """How many of the users have each item, into `count`; returns how many items that `touched`."""
    n = 0
    for u in users:
        for p in range(user_ptr[u], user_ptr[u + 1]):
            j = user_items[p]
            touched[n] = j
            n += count[j] == 0
            count[j] += 1
    return n


@njit(nogil=True, cache=True)
def _finish(made, row, i, m, touched, count, total, item_ptr, item_ids, min_common, k, normalize):
    """Row i of the result from its sums: enough common users, normalised, the k best.

    Scores are rounded to float32 before they are compared, so that sums which differ only in the order
    of their terms tie. For `product` and `sqrt` a sampled sum is first scaled to all pairs of users.
    Candidates pass through a small pool: a full sort of them all would cost as much as their sums.
    """
    lengths, neighbours, scores, commons, _ = made
    least, highest = max(2, min_common), 0.0
    for j in touched:
        if j != i and count[j] >= least:
            highest = max(highest, total[j])
    n = item_ptr[i + 1] - item_ptr[i]
    scale = 1.0 if m < 2 else (n * (n - 1.0)) / (m * (m - 1.0))
    value, found, ids = np.empty(4 * k, np.float32), np.empty(4 * k, np.int32), np.empty(4 * k, np.int32)
    kept, bar = 0, np.float32(0)
    for j in touched:
        if j == i or count[j] < least:
            continue
        score = total[j]
        if normalize == 1 and highest > 0:
            score /= highest
        elif normalize >= 2:
            score *= scale / (n * (item_ptr[j + 1] - item_ptr[j]))
            if normalize == 3:
                score = np.sqrt(score)
        value[kept], found[kept], ids[kept] = score, j, item_ids[j]
        kept += value[kept] >= bar
        if kept == value.size:
            top = best(value, ids, k)
            value[:k], found[:k], ids[:k] = value[top], found[top], ids[top]
            kept, bar = k, value[k - 1]
    top = best(value[:kept], ids[:kept], k)
    lengths[row] = top.size
    for position in range(top.size):
        j = found[top[position]]
        neighbours[row, position] = item_ids[j]
        scores[row, position] = value[top[position]]
        commons[row, position] = count[j]


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
            k, pool, min_common, shrinkage, threshold, diversity, dot, common, dense,
            pairs, nears):  # fmt: skip
    """The k users most like one history (`items` ascending, unit row `x`), diversified.

    Postings give the `pool` best candidates; their similarity is then computed exactly from their own
    rows; maximal marginal relevance (Carbonell and Goldstein 1998) chooses k. The scratch arrays dot
    float32[n_users], common int32[n_users], dense float32[n_items] are zero on entry and on return.
    Similarities of users to each other are kept in `nears` float32[m] under their `pairs` int64[m] (-1:
    none yet; m a power of 2), for the next call with the same index.
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

    # A margin only ever sinks as more are chosen, so a candidate is compared with those chosen since it was
    # last looked at only while its margin of then is the highest (lazy greedy, Minoux 1978): the choice is
    # that of comparing all, for a fraction of the comparisons.
    chosen, closest = np.zeros(candidates.size, np.bool_), np.zeros(candidates.size, np.float32)
    picks, seen, held = np.empty(k, np.int64), np.zeros(candidates.size, np.int64), -1
    for n in range(k):
        while True:
            pick, highest = -1, -np.inf
            for c in range(candidates.size):
                margin = diversity * exact[c] - (1 - diversity) * closest[c]
                if not chosen[c] and margin > highest:
                    pick, highest = c, margin
            if seen[pick] == n or diversity == 1:
                break
            other = picks[seen[pick]]
            pair = np.int64(candidates[other]) * (user_ptr.size - 1) + candidates[pick]
            slot = ((pair * HASH) >> 20) & (pairs.size - 1)
            if pairs[slot] != pair:
                if other != held:
                    if held >= 0:
                        dense[user_items[user_ptr[candidates[held]] : user_ptr[candidates[held] + 1]]] = 0
                    start, stop = user_ptr[candidates[other]], user_ptr[candidates[other] + 1]
                    dense[user_items[start:stop]] = user_x[start:stop]
                    steps, held = steps + stop - start, other
                first, last = user_ptr[candidates[pick]], user_ptr[candidates[pick] + 1]
                nears[slot], _ = _overlap(dense, user_items[first:last], user_x[first:last], shrinkage)
                pairs[slot] = pair
                steps += last - first
            closest[pick] = max(closest[pick], nears[slot])
            seen[pick] += 1
        chosen[pick] = True
        picks[n] = pick
    if held >= 0:
        dense[user_items[user_ptr[candidates[held]] : user_ptr[candidates[held] + 1]]] = 0
    return candidates[chosen], exact[chosen], shared[chosen], steps


@njit(nogil=True, cache=True)
def leanings(users, similarities, excluded, user_ptr, user_items, user_labels, user_ratings, n_items):
    """Items that similar users lean towards, ascending int32[n], without the excluded ones.

    With it average float64[n], support int32[n], score float64[n] as `users.Signals` has them.
    """
    score, stars = np.zeros(n_items), np.zeros(n_items)
    support, raters, likes = (
        np.zeros(n_items, np.int32),
        np.zeros(n_items, np.int32),
        np.zeros(n_items, np.int32),
    )
    for u in range(users.size):
        for p in range(user_ptr[users[u]], user_ptr[users[u] + 1]):
            i = user_items[p]
            support[i] += 1
            if user_labels[p] > 0:
                likes[i] += 1
                score[i] += similarities[u]
            else:
                score[i] -= similarities[u]
            if not np.isnan(user_ratings[p]):
                raters[i] += 1
                stars[i] += user_ratings[p]
    score[excluded] = 0
    items = np.flatnonzero(score > 0).astype(np.int32)
    average = np.empty(items.size)
    for n in range(items.size):
        i = items[n]
        average[n] = stars[i] / raters[i] if raters[i] else likes[i] / support[i]
    return items, average, support[items], score[items]


@njit(nogil=True, cache=True)
def entries(users, item, user_ptr, user_items):
    """Where these users' rows hold the item, int64[m]; a user whose row does not is passed over."""
    found, m = np.empty(users.size, np.int64), 0
    for u in range(users.size):
        start, stop = user_ptr[users[u]], user_ptr[users[u] + 1]
        at = start + np.searchsorted(user_items[start:stop], item)
        if at < stop and user_items[at] == item:
            found[m] = at
            m += 1
    return found[:m]


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
    pairs, nears = np.empty(1, np.int64), np.empty(1, np.float32)
    for row in range(rows):
        pairs[0] = -1  # two users have too few pairs in common for a memo to pay
        start, stop = user_ptr[mains[row]], user_ptr[mains[row] + 1]
        users, similarities, shared, steps = nearest(
            user_items[start:stop], user_x[start:stop], mains[row],
            user_ptr, user_items, user_x, item_ptr, item_users, item_x,
            k, pool, min_common, shrinkage, threshold, diversity, dot, common, dense, pairs, nears,
        )  # fmt: skip
        lengths[row], work[row] = users.size, steps
        neighbours[row, : users.size] = users
        scores[row, : users.size] = similarities
        commons[row, : users.size] = shared
    return lengths, neighbours, scores, commons, work
