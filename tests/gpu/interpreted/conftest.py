"""Tests of this folder run in Triton's interpreter, in a process of their own: test_interpreted.py starts it."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter  # noqa: F401  before any kernel
else:
    collect_ignore_glob = ["test_*.py"]
