"""`distill.catalog = "auto"`: exact ranks, or ranks from some of the items, by what they cost on this machine."""

from __future__ import annotations

from bdkernels import rank_error
from bidistill.config import Config
from bidistill.data import Split
from bidistill.plan.measure import Costs, draw_share, share_of
from bidistill.plan.sizes import Sizes

AUTO_ITEMS = 10_000  # estimates are off by at most 1.4 % of the catalog, 19 times in 20


def settle(config: Config, split: Split) -> tuple[Config, str]:
    """The settings with a number in the place of "auto", and a sentence that says which and why.

    Exact while draws take at most `distill.auto_share` of the joint phase's time, measured here and now. The number goes into
    the run's config.toml, so that the run can be repeated.
    """
    sizes = Sizes.of_split(split, config)
    return decided(config, sizes, draw_share(config, sizes))


def planned(config: Config, sizes: Sizes, costs: Costs) -> tuple[Config, str]:
    """The same from what `measure` found; the settings as they are, and "", where there is nothing to decide."""
    if config.distill.catalog != "auto" or config.distill.method == "none":
        return config, ""
    return decided(config, sizes, share_of(config, sizes, costs.draw, costs.step["joint"]))


def decided(config: Config, sizes: Sizes, share: float) -> tuple[Config, str]:
    """`settle` where exact draws take this share of the joint phase's time."""
    exact = share <= config.distill.auto_share or sizes.items <= AUTO_ITEMS
    words = f"distill.catalog auto: exact draws would take {share:.0%} of the joint phase"
    if exact:
        return config.with_overrides({"distill.catalog": 0}), f"{words}: exact ranks"
    words += f": ranks from {AUTO_ITEMS:,} items, off by at most {rank_error(AUTO_ITEMS):.1%} of the catalog (19 in 20)"
    return config.with_overrides({"distill.catalog": AUTO_ITEMS}), words
