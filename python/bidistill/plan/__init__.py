"""What a run will take, before it is started: memory from the sizes of its arrays, time from a measurement of seconds."""

from bidistill.plan.auto import settle
from bidistill.plan.measure import Costs, measure
from bidistill.plan.plan import Plan, make_plan
from bidistill.plan.sizes import Sizes

__all__ = ["Costs", "Plan", "Sizes", "make_plan", "measure", "settle"]
