"""No users x items matrix: peak extra memory of rank, sample and topk at 256 users x 1,000,000 items, in a process of its own."""

import json
import subprocess
import sys

import pytest

from bdkernels import backends

LIMIT_MB = 64
CHILD = """
import json, sys, torch
import bdkernels as bd

def high_water():  # KB
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])

class Scorer:  # makes blocks of the scores of factors
    def __init__(self, f):
        self.f, self.n_rows, self.n_items, self.device = f, len(f.user_factors), f.n_items, f.item_factors.device
    def block(self, first, stop):
        return self.f.user_factors @ self.f.item_factors[first:stop].T
    def take(self, rows):
        return Scorer(self.f._replace(user_factors=self.f.user_factors[rows]))

torch.set_num_threads(2)
b, n = 256, 1_000_000
t = bd.Factors(torch.randn(b, 32), torch.randn(n, 32))
s = bd.Factors(torch.randn(b, 8), torch.randn(n, 8))
seen = bd.Seen.from_pairs(torch.arange(b).repeat(20), torch.randint(0, n, (20 * b,)), b)
ids = torch.randint(0, n, (b, 64))
small = [f._replace(user_factors=f.user_factors[:2], item_factors=f.item_factors[:5000]) for f in (t, s)]
few = [f._replace(item_factors=f.item_factors[:200_000]) for f in (t, s)]  # a dense matrix would take 195 MB
leaves = [f.clone().requires_grad_() for f in few[1][:2]]
one = [f._replace(user_factors=f.user_factors[:1]) for f in (t, s)]
bd.sample(*small, 32, user_ids=torch.arange(len(small[0].user_factors)), step=0), bd.topk(small[0], 10)  # libraries, thread pools
bd.rank(Scorer(small[0]), ids[:2] % 5000)
bd.softmax_loss(bd.Factors(*(t.clone().requires_grad_() for t in small[1][:2])), ids[:2, 0] % 2, ids[:2, 1] % 5000).backward()
run = {
    "rank": lambda: bd.rank(t, ids, seen),
    "rank one query": lambda: bd.rank(t, ids[:, :1], seen),
    "sample": lambda: bd.sample(t, s, 32, seen, user_ids=torch.arange(len(t.user_factors)), step=0),
    "full row": lambda: bd.sample(*one, 32, to_student=bd.Exp(500.0), to_teacher=None, user_ids=torch.arange(1), step=0),
    "topk": lambda: bd.topk(t, 100, seen),
    "rank of a scorer": lambda: bd.rank(Scorer(few[0]), ids % 200_000),
    "sample of scorers": lambda: bd.sample(*map(Scorer, few), 32, user_ids=torch.arange(b), step=0),
    "topk of a scorer": lambda: bd.topk(Scorer(few[0]), 100),
    "topk of many": lambda: bd.topk(t, 2048, seen),
    "softmax loss": lambda: bd.softmax_loss(bd.Factors(*leaves), torch.arange(b), ids[:, 0] % 200_000).backward(),
}[sys.argv[1]]
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again from here
before = high_water()
run()
print(json.dumps((high_water() - before) / 1024))
"""


CALLS = ["rank", "rank one query", "sample", "full row", "topk", "topk of many"]
OF_FEW = ["rank of a scorer", "sample of scorers", "topk of a scorer", "softmax loss"]  # of 200,000 items


@pytest.mark.parametrize("what", CALLS + OF_FEW)
def test_peak_extra_memory(what):
    if (reason := backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is read from /proc, which this system does not have")
    out = subprocess.run([sys.executable, "-c", CHILD, what], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    extra = json.loads(out.stdout)
    items = 200_000 if what in OF_FEW else 1_000_000
    print(
        f"{what}: {extra:.1f} MB above its inputs; a dense matrix of 256 x {items:,} would take {256 * items >> 18} MB"
    )
    assert extra < LIMIT_MB


def test_a_dense_matrix_would_be_noticed():
    """The measurement itself: a child that holds 80 MB more is seen to."""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is read from /proc, which this system does not have")
    code = CHILD.replace('"rank": lambda: bd.rank(t, ids, seen)', '"rank": lambda: torch.ones(20_000_000)')
    out = subprocess.run([sys.executable, "-c", code, "rank"], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) > LIMIT_MB
