"""What a run will take, before it is started: memory from the sizes of its arrays, time from a measurement of seconds."""

from bidistill.data.sizes import Sizes
from bidistill.plan.costs import Costs, measure
from bidistill.plan.estimate import Plan, make_plan
from bidistill.training.settings import settle

__all__ = ["Costs", "Plan", "Sizes", "make_plan", "measure", "settle"]
