"""Items on several processes: `torchrun --nproc-per-node 2 shards.py`, or plainly as one; the draws are the same.

Each process holds a part of the items, and has users of its own, as in data-parallel training.
"""

from datetime import timedelta

import torch
import torch.distributed as dist

from bdkernels import Exp, Factors, Seen, Tanh
from bdkernels.distributed import ShardedCatalog

timeout = timedelta(minutes=2)  # of every collective: who is gone or stuck for longer is named in a ShardError
if dist.is_torchelastic_launched():
    dist.init_process_group("gloo", timeout=timeout)  # on GPUs, not run so far, "cpu:gloo,cuda:nccl"
else:
    dist.init_process_group("gloo", init_method="tcp://localhost:0", rank=0, world_size=1, timeout=timeout)
process, world = dist.get_rank(), dist.get_world_size()
n_users, n_items, dims = 64, 100_000, (32, 8)


def rows(table: int, dim: int, of: range) -> torch.Tensor:
    """Some rows of a made-up table; of a real one, these rows alone are read."""
    whole = torch.randn(of.stop, dim, generator=torch.Generator().manual_seed(table))
    return whole[of.start :]


def part(n: int) -> range:
    return range(n * process // world, n * (process + 1) // world)


items, users = part(n_items), part(n_users)
shards = ShardedCatalog(len(items))
assert shards.slice == slice(items.start, items.stop)
teacher, student = (Factors(rows(dim, dim, users), rows(dim + 1, dim, items)) for dim in dims)
user_ids = torch.arange(users.start, users.stop)
owned = torch.stack([user_ids, user_ids * 1500], 1)  # ids of the whole catalog
seen = Seen.from_pairs(torch.arange(len(users)).repeat_interleave(2), owned.flatten(), len(users))

best = shards.topk(teacher, 10, seen)
assert torch.equal(shards.rank(teacher, best.ids, seen), torch.arange(1, 11).expand(len(users), 10))

weights = {"to_student": Tanh(252.0), "to_teacher": Exp(2.5)}
before = shards.traffic
draws = shards.sample(teacher, student, 16, seen, **weights, user_ids=user_ids, step=0, seed=1)
sent = torch.tensor([shards.traffic - before, draws.to_student.ids.sum()])
dist.all_reduce(sent)
if process == 0:
    print(f"user 0: best {best.ids[0].tolist()}, sampled for the student {draws.to_student.ids[0].tolist()}")
    print(f"{world} processes sent {sent[0] / 1e6:.1f} MB for {n_users} users; checksum of the draws {sent[1]}")
dist.destroy_process_group()
