"""The operators on a catalog whose items lie on several processes."""

from bdkernels.distributed.catalog import ShardError, Shards

__all__ = ["ShardError", "Shards"]
