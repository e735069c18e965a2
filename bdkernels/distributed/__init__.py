"""The operators on a catalog whose items lie on several processes."""

from bdkernels.distributed.catalog import ShardedCatalog, ShardError

__all__ = ["ShardError", "ShardedCatalog"]
