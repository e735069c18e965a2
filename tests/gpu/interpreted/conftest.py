"""Tests of this folder run in Triton's interpreter, in a process of their own: test_interpreted.py starts it."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
