"""A whole round of the sampler on the device, in Triton: four launches, five where rows have seen items, and no wait.

Proposals are made and scored by both models in one kernel; those of rank.py count them in the catalog, which is the work, and its
floor that of two calls of `rank`; a program for each row then accepts in both directions, places the draws behind those that are
there, and appends the row to the next list if it stays open. 24 bytes a proposal lie between the kernels: its id, and a score and
a count of each model.
"""

import torch
import triton
import triton.language as tl

from bdkernels.backends import native, reference
from bdkernels.backends.triton.rank import SEEN_BLOCK, count, take_off_seen, thresholds_of_turn
from bdkernels.backends.triton.sample import (
    BLOCK,
    ROUNDED,
    bits_of,
    is_accepted,
    most_halvings,
    random_words,
    unseen_item,
)
from bdkernels.backends.triton.score import FUSED, by_rows, chain
from bdkernels.types.round import Round


@triton.jit(do_not_specialize=["start", "halvings"])
def propose_and_score(
    teacher_users, teacher_items, teacher_bias, student_users, student_items, student_bias, row_keys, indptr, indices,
    seed, step, rows, live, ids, teacher_scores, student_scores, teacher_counts, student_counts, next_live,
    start, n, halvings, size, n_items, teacher_d, student_d,
    teacher_user_stride, teacher_item_stride, student_user_stride, student_item_stride,
    STREAM: tl.constexpr, TEACHER_BIAS: tl.constexpr, STUDENT_BIAS: tl.constexpr, SEEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ids, scores, counts [R, size]: proposals of the live rows, their scores by both models, and 0. The next list is empty."""
    if tl.program_id(0) == 0:
        tl.store(next_live, 0)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wanted = (at < n) & (at // size < tl.load(live))
    row = tl.load(rows + at // size, mask=wanted, other=0)
    row_key = tl.load(row_keys + row, mask=wanted, other=0)
    hi, lo, _, _ = random_words(tl.load(seed), tl.load(step), row_key, start + at % size, STREAM)
    id = unseen_item(hi, lo, indptr, indices, row, wanted, n_items, halvings, SEEN)
    tl.store(ids + at, id, mask=wanted)
    there = wanted & (id >= 0)
    tl.store(
        teacher_scores + at,
        chain(
            teacher_users, teacher_items, teacher_bias, row, id, teacher_d, teacher_user_stride, teacher_item_stride,
            there, TEACHER_BIAS,
        ),
        mask=wanted,
    )  # fmt: skip
    tl.store(
        student_scores + at,
        chain(
            student_users, student_items, student_bias, row, id, student_d, student_user_stride, student_item_stride,
            there, STUDENT_BIAS,
        ),
        mask=wanted,
    )  # fmt: skip
    tl.store(teacher_counts + at, 0, mask=wanted)
    tl.store(student_counts + at, 0, mask=wanted)


@triton.jit
def count_seen_of_both(
    teacher_users, teacher_items, teacher_bias, student_users, student_items, student_bias, indptr, indices,
    rows, live, ids, teacher_scores, student_scores, teacher_counts, student_counts,
    size, n_items, teacher_d, student_d,
    teacher_user_stride, teacher_item_stride, student_user_stride, student_item_stride,
    TEACHER_BIAS: tl.constexpr, STUDENT_BIAS: tl.constexpr, BLOCK: tl.constexpr, THRESHOLDS: tl.constexpr,
):  # fmt: skip
    """Takes what one of the live rows has seen off its counts by one of the models again."""
    at_row = tl.program_id(0).to(tl.int64)
    if at_row < tl.load(live):
        row = tl.load(rows + at_row)
        if tl.program_id(1) == 0:
            take_off_seen(
                at_row, row, teacher_users, teacher_items, teacher_bias, None, teacher_scores, ids, teacher_counts,
                indptr, indices, n_items, teacher_d, size, teacher_user_stride, teacher_item_stride, 0,
                TEACHER_BIAS, False, BLOCK, THRESHOLDS,
            )  # fmt: skip
        else:
            take_off_seen(
                at_row, row, student_users, student_items, student_bias, None, student_scores, ids, student_counts,
                indptr, indices, n_items, student_d, size, student_user_stride, student_item_stride, 0,
                STUDENT_BIAS, False, BLOCK, THRESHOLDS,
            )  # fmt: skip


@triton.jit
def hits_of(at, k, KIND: tl.constexpr):
    """The hits of a row in a direction; one that is off has what it wants."""
    hits = tl.load(at)
    if KIND < 0:
        hits = tl.maximum(hits, k)
    return hits


@triton.jit
def takes_more(hits, k, proposed, probe, min_hits, cap):
    """Whether a row with so many hits after so many proposals takes more of them."""
    return (hits < k) & (proposed < cap) & ((proposed < probe) | (hits >= min_hits))


@triton.jit
def place(ids, id, hit, hits, k):
    """Write the proposals that hit behind the first `hits` draws of a row, up to k; the number of hits after that."""
    position = hits + tl.cumsum(hit.to(tl.int32), 0) - 1
    tl.store(ids + position, id, mask=hit & (position < k))
    return hits + tl.sum(hit.to(tl.int32), 0)


@triton.jit(do_not_specialize=["start", "stop", "to_student", "to_teacher"])
def accept_in_order(
    row_keys, candidates, seed, step, rows, live, proposals, teacher_counts, student_counts,
    ids, hits, next_rows, next_live, short,
    start, stop, size, n_rows, k, probe, min_hits, cap, to_student, to_teacher,
    STREAM: tl.constexpr, TO_STUDENT: tl.constexpr, STUDENT_FLIPPED: tl.constexpr,
    TO_TEACHER: tl.constexpr, TEACHER_FLIPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One of the live rows, by ids and hits [2, B, k] and [2, B]; TO_STUDENT and TO_TEACHER are kinds of weights, or
    negative where the direction is off.
    """
    at_row = tl.program_id(0).to(tl.int64)
    if at_row < tl.load(live):
        row = tl.load(rows + at_row)
        row_key = tl.load(row_keys + row)
        count = tl.zeros([BLOCK], tl.int64) + tl.load(candidates + row)
        student_hits = hits_of(hits + row, k, TO_STUDENT)
        teacher_hits = hits_of(hits + n_rows + row, k, TO_TEACHER)
        student_open = takes_more(student_hits, k, start, probe, min_hits, cap)
        teacher_open = takes_more(teacher_hits, k, start, probe, min_hits, cap)
        student_size, teacher_size = tl.where(student_open, size, 0), tl.where(teacher_open, size, 0)
        for first in range(0, size, BLOCK):
            column = first + tl.arange(0, BLOCK)
            wanted = column < size
            at = at_row * size + column
            a, b, c, d = random_words(tl.load(seed), tl.load(step), row_key, start + column, STREAM)
            id = tl.load(proposals + at, mask=wanted, other=0)
            # Rounded scores may count an item before itself, and take one too many off again.
            of_teacher = 1 + tl.maximum(tl.load(teacher_counts + at, mask=wanted, other=0), 0).to(tl.int64)
            of_student = 1 + tl.maximum(tl.load(student_counts + at, mask=wanted, other=0), 0).to(tl.int64)
            if TO_STUDENT >= 0:
                hit = is_accepted(a, b, of_teacher, of_student, count, to_student, TO_STUDENT, STUDENT_FLIPPED)
                student_hits = place(ids + row * k, id, hit & (column < student_size), student_hits, k)
            if TO_TEACHER >= 0:
                hit = is_accepted(c, d, of_student, of_teacher, count, to_teacher, TO_TEACHER, TEACHER_FLIPPED)
                teacher_hits = place(ids + (n_rows + row) * k, id, hit & (column < teacher_size), teacher_hits, k)
        if TO_STUDENT >= 0:
            tl.store(hits + row, student_hits)
        if TO_TEACHER >= 0:
            tl.store(hits + n_rows + row, teacher_hits)
        student_open = student_open & takes_more(student_hits, k, stop, probe, min_hits, cap)
        teacher_open = teacher_open & takes_more(teacher_hits, k, stop, probe, min_hits, cap)
        if student_open | teacher_open:
            tl.store(next_rows + tl.atomic_add(next_live, 1, sem="relaxed"), row)
        elif (student_hits < k) | (teacher_hits < k):
            tl.atomic_add(short, 1, sem="relaxed")


def draw_round(s: Round, start: int, stop: int) -> None:
    """As `Steps.draw_round` says. Where a tile has yet to be chosen, it is for all of `s.rows`."""
    size, n_rows, n_items = stop - start, len(s.rows), s.teacher.n_items
    models, (indptr, indices) = (by_rows(s.teacher), by_rows(s.student)), native.lists(s.seen)
    row_keys = s.row_keys.contiguous()
    ids, both_scores, both_counts = s.rows.new_empty(3, n_rows, size).unbind()  # one allocation
    scores = both_scores.view(torch.float32).view(2, n_rows, size).unbind()
    counts = both_counts.view(torch.int32).view(2, n_rows, size).unbind()
    widths = (*(f.user_factors.shape[1] for f in models), *(t.stride(0) for f in models for t in f[:2]))
    biased = {"TEACHER_BIAS": models[0].item_bias is not None, "STUDENT_BIAS": models[1].item_bias is not None}
    propose_and_score[(triton.cdiv(n_rows * size, BLOCK),)](
        *models[0], *models[1], row_keys, indptr, indices, s.seed, s.step, s.rows, s.live,
        ids, *scores, *counts, s.next_live, start, n_rows * size, most_halvings(indices), size, n_items, *widths,
        STREAM=reference.PROPOSE, SEEN=indices is not None, BLOCK=BLOCK, **biased, **FUSED,
    )  # fmt: skip
    for f, thresholds, out, nan_at in zip(models, scores, counts, s.nan_at.unbind(), strict=True):
        count(out, nan_at, n_items, f, None, thresholds, ids, live=s.live, rows=s.rows)
    if indices is not None and len(indices):
        count_seen_of_both[(n_rows, 2)](
            *models[0], *models[1], indptr, indices, s.rows, s.live, ids, *scores, *counts, size, n_items, *widths,
            BLOCK=SEEN_BLOCK, THRESHOLDS=thresholds_of_turn(size), **biased, **FUSED,
        )  # fmt: skip
    (to_student, a, student_flipped), (to_teacher, b, teacher_flipped) = map(native.weight, s.weights)
    accept_in_order[(n_rows,)](
        row_keys, s.candidates, s.seed, s.step, s.rows, s.live, ids, *counts,
        s.ids, s.hits, s.next_rows, s.next_live, s.short,
        start, stop, size, len(row_keys), s.ids.shape[2], *s.limits, bits_of(a), bits_of(b),
        STREAM=reference.ACCEPT, TO_STUDENT=to_student, STUDENT_FLIPPED=student_flipped,
        TO_TEACHER=to_teacher, TEACHER_FLIPPED=teacher_flipped, BLOCK=BLOCK, **ROUNDED,
    )  # fmt: skip
