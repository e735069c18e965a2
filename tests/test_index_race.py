"""Indices that another thread writes during a call: an answer or the usual error, never an access outside of a tensor."""

import os
import subprocess
import sys

import pytest

from bdkernels import backends

CHILD = """
import faulthandler, sys, threading, torch
import bdkernels as bd

faulthandler.enable()
sys.setswitchinterval(1e-5)
b, n, c, d = 64, 5000, 64, 8
wild = 2**60
f, student = bd.Factors(torch.randn(b, d), torch.randn(n, d)), bd.Factors(torch.randn(b, 2), torch.randn(n, 2))
one_seen = bd.Seen.from_pairs(torch.arange(b).repeat(20), torch.randint(0, n, (20 * b,)), b)
ids, users = torch.randint(0, n, (b, c)), torch.arange(b)
no_mask = torch.zeros(b, c, dtype=torch.bool)
good = {"ids": ids, "indices": one_seen.indices, "indptr": one_seen.indptr, "users": users, "mask": no_mask}
t = {name: value.clone() for name, value in good.items()}
seen = bd.Seen(t["indptr"], t["indices"])
listed = torch.where(good["mask"], ids, wild)  # what is masked out may hold anything
tables = torch.randn(b, d), torch.randn(n, d), torch.randn(n)
optimizer = bd.SGD([x.clone() for x in tables], lr=1e-3)
step = lambda: (t["users"], t["ids"][:, 0].contiguous(), t["ids"], bd.Draws(listed, t["mask"]), torch.zeros(b, c))
drawn = {"seed": 1, "step": 1, "user_ids": users}
grads = torch.zeros(b * c, d)
calls = {
    "score": ("ids", lambda: bd.score(f, t["ids"])),
    "rank": ("ids", lambda: bd.rank(f, t["ids"], one_seen)),
    "rank, indices": ("indices", lambda: bd.rank(f, ids, seen)),
    "rank, indptr": ("indptr", lambda: bd.rank(f, ids, seen)),
    "topk": ("indptr", lambda: bd.topk(f, 5, seen)),
    "sample, indices": ("indices", lambda: bd.sample(f, student, 4, seen, to_student=bd.Exp(500.0), **drawn)),
    "sample, indptr": ("indptr", lambda: bd.sample(f, student, 4, seen, **drawn)),
    "count_above": ("indptr", lambda: bd.count_above(f, torch.zeros(b, 2), ids[:, :2], seen)),
    "loss, ids": ("ids", lambda: bd.fused_loss(*tables, *step())),
    "loss, users": ("users", lambda: bd.fused_loss(*tables, *step())),
    "loss, mask": ("mask", lambda: bd.fused_loss(*tables, *step())),
    "update, ids": ("ids", lambda: bd.fused_step(optimizer, *step())),
    "update, users": ("users", lambda: bd.fused_step(optimizer, *step())),
    "sparse_step": ("ids", lambda: bd.sparse_step(optimizer, item_table=(t["ids"].view(-1), grads))),
}
for name, (what, call) in calls.items():
    target, safe = t[what], good[what]
    bad = torch.ones_like(safe) if what == "mask" else safe.clone()
    if what != "mask":
        bad.view(-1)[-8:] = wild
    stop = threading.Event()

    def flip():
        while not stop.wait(2e-4):
            target.copy_(bad)
            target.copy_(safe)

    thread = threading.Thread(target=flip)
    thread.start()
    answers = errors = 0
    for _ in range(int(sys.argv[1])):
        try:
            call()
            answers += 1
        except ValueError as error:
            assert "expected" in str(error), error
            errors += 1
    stop.set()
    thread.join()
    target.copy_(safe)
    call()
    print(name, answers, errors)
"""


def test_indices_that_change_during_a_call():
    if (reason := backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-c", CHILD, "25"]
    out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert out.returncode == 0, (out.returncode, out.stdout, out.stderr[-2000:])
