"""What one process of `scale` runs under torchrun: `python -m benchmarks.traffic ITEMS`. Rank 0 prints a line of JSON."""

import json
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

import bdkernels as bd
from bdkernels.distributed import ShardedCatalog

USERS, LISTED, DRAWS, DIMS = 64, 64, 32, (64, 16)  # users of each process


def main() -> None:
    n = int(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(5)
    users = [torch.randn(USERS * world, d) for d in DIMS]
    items = [torch.randn(n, d) for d in DIMS]
    ids = torch.randint(n, (USERS * world, LISTED))
    own, start, stop = slice(USERS * rank, USERS * (rank + 1)), n * rank // world, n * (rank + 1) // world
    shards = ShardedCatalog(stop - start)
    whole = [bd.Factors(u[own], v) for u, v in zip(users, items, strict=True)]
    part = [f._replace(item_factors=f.item_factors[start:stop]) for f in whole]
    user_ids = torch.arange(USERS * world)[own]

    before = shards.traffic
    same = torch.equal(shards.rank(part[0], ids[own]), bd.rank(whole[0], ids[own]))
    of_rank, before = shards.traffic - before, shards.traffic
    drawn = shards.sample(*part, DRAWS, user_ids=user_ids, step=0)
    of_sample = shards.traffic - before
    alone = bd.sample(*whole, DRAWS, user_ids=user_ids, step=0)
    same = same and all(torch.equal(a.ids, b.ids) for a, b in zip(drawn, alone, strict=True))

    found = [None] * world
    dist.all_gather_object(found, (of_rank, of_sample, same))
    if rank == 0:
        ranks, samples, sames = zip(*found, strict=True)
        row = {"processes": world, "items": n, "users_each": USERS, "listed": LISTED, "draws": DRAWS, "dims": DIMS}
        print(json.dumps(row | {"rank_bytes": max(ranks), "sample_bytes": max(samples), "same_as_one": all(sames)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
