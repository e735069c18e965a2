"""A plugin of pytest (-p one_of_each): of each test function one set of parameters, where there is no time for all."""

from collections import defaultdict

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    of_each: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        of_each[item.nodeid.split("[")[0]].append(item)
    kept = {each[len(each) // 2] for each in of_each.values()}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
