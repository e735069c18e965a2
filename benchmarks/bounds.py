"""What bounds the figures that are missed, as arithmetic on the rows of the results; nothing here is typed in."""

from collections.abc import Callable

from benchmarks.targets import Rows, fastest


def floor_of_a(rows: Rows) -> str:
    ours, floor = rows["sample/a", "bdkernels"], rows["sample/a", "floor"]
    scores, cores = 2 * ours["users"] * ours["items"], ours["threads"]
    product = floor["median_s"] * cores / scores * 1e9
    search = rows["rank/search", "fused_64"]["ns_a_score"] - rows["rank/search", "fused_1"]["ns_a_score"]
    rest = (ours["median_s"] * cores - scores * (product + search) / 1e9) / ours["users"] * 1e6
    least = (product + search) / product
    flat = rows["sample/c", "bdkernels"]["times_the_floor"]
    return (
        f"Sampling at (a) against the floor: a score costs a core {product:.2f} ns of product and {search:.2f} ns of search"
        f" among 64 thresholds, which alone is {least:.1f} times the floor. The other {rest:.0f} us of a core for each user are"
        f" proposals, guessed ranks, thresholds and decisions. They do not grow with the catalog: at (c) all of it is {flat:.1f}"
        f" times the floor."
    )


def steps_of_epoch(rows: Rows) -> str:
    ours, steps = rows["epoch/f", "bdkernels"]["median_s"], rows["epoch/f", "training_steps_alone"]["median_s"]
    eager = fastest(rows, "epoch/f", "eager_steps_alone")["median_s"]
    tenth, every = (rows["epoch/f", f"published_{name}_epoch"]["median_s"] for name in ("every_tenth", "every"))
    return (
        f"Epoch (f): the training steps alone take {steps:.2f} s of our {ours:.2f} s, and {eager:.2f} s of the published side's. "
        f"With draws for nothing ours would be {tenth / steps:.1f} and {every / steps:.0f} times as fast as the two published "
        f"procedures; with steps for nothing, {tenth / (ours - steps):.1f} and {every / (ours - steps):.0f} times."
    )


def sentences(rows: Rows) -> list[str]:
    """One for each figure whose rows are there."""
    found = []
    all_of_them: tuple[Callable[[Rows], str], ...] = (floor_of_a, steps_of_epoch)
    for say in all_of_them:
        try:
            found.append(f"- {say(rows)}")
        except KeyError:
            continue  # not measured
    return found
