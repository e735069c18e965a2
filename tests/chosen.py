"""The backends that the operator tests run on: BDKERNELS_TEST_BACKENDS, names between blanks; by default those of the CPU."""

import os

BACKENDS = os.environ.get("BDKERNELS_TEST_BACKENDS", "reference cpu").split()
