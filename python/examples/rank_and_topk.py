"""The operators alone: exact ranks and top lists over a whole catalog, without a table of all scores."""

import time

import torch

from bdkernels import Factors, Seen, rank, score, topk

n_users, n_items, dim = 64, 100_000, 32
generator = torch.Generator().manual_seed(0)
factors = Factors(
    torch.randn(n_users, dim, generator=generator),
    torch.randn(n_items, dim, generator=generator),
    torch.randn(n_items, generator=generator),
)
users = torch.arange(n_users)
owned = torch.randint(n_items, (n_users, 30), generator=generator)  # what each user has already: never a candidate
seen = Seen.from_pairs(users.repeat_interleave(30), owned.reshape(-1), n_users)

# The ten best items of each user, best first. A rank is a place in the same order, so their ranks are 1 to 10.
best = topk(factors, 10, seen)
ids, scores = best.ids[0].tolist(), best.scores[0].tolist()
print("user 0:", ", ".join(f"{item} ({value:.2f})" for item, value in zip(ids, scores, strict=True)))
assert torch.equal(rank(factors, best.ids, seen), torch.arange(1, 11).expand(n_users, 10))
assert torch.equal(score(factors, best.ids), best.scores)

# Evaluation by rank: one held-out item a user says it all, for any list length at once.
held_out = topk(factors, 200, seen).ids.gather(1, torch.randint(200, (n_users, 1), generator=generator))
began = time.perf_counter()
place = rank(factors, held_out, seen)  # [n_users, 1], 1 = best
seconds = time.perf_counter() - began
for k in (10, 50, 100):
    hit = place <= k
    print(f"HR@{k} {hit.float().mean():.3f}  NDCG@{k} {(hit / torch.log2(place + 1.0)).mean():.3f}")
print(f"MRR {(1 / place).mean():.3f}; {n_users} users x {n_items:,} items ranked exactly in {1000 * seconds:.0f} ms")
