"""What is settled before a run begins: that its processes were given the same, that settings and data fit, and what is "auto"."""

from __future__ import annotations

from bidistill.config import Config
from bidistill.data import Split
from bidistill.errors import UserError
from bidistill.run_folder import versions
from bidistill.sharded.update import check_shardable
from bidistill.world import World, within


def settled(world: World, config: Config, split: Split, fingerprint: str) -> Config:
    """The settings of the run, the same on every process.

    Args:
        fingerprint: of the split.

    Raises:
        UserError: on every process, naming one, where the processes have other settings, data or software; or settings that do
            not fit the data or several processes.
    """
    if world.size > 1:
        given = {name: value for name, value in config.values().items() if not name.startswith("data.")}
        world.agree("start", settings=given | versions() | {"split": fingerprint})
        check_shardable(config)
    config.check_catalog(split.n_items)
    if not len(split.val_users):
        raise UserError("the split holds out no val interactions, which pick the best epoch: choose another split")
    return _measured(world, config, split) if config.distill.catalog == "auto" else config


def _measured(world: World, config: Config, split: Split) -> Config:
    """With a number for distill.catalog "auto", from what the first process measures."""
    from bidistill.plan import settle  # which measures a Trainer

    catalog = 0
    with world.together("distill.catalog auto"), within(World()):
        if world.first:
            measured, why = settle(config, split)
            catalog = int(measured.distill.catalog)
            if config.run.progress:
                print(why)
    return config.with_overrides({"distill.catalog": world.agree("catalog", catalog)[0]})
