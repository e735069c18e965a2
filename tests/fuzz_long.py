"""`make fuzz`: test_fuzz.py with many new examples (FUZZ_EXAMPLES of each operator), in a process that may crash or hang.

A failure is printed by pytest, shrunk. After a crash there is none to ask, so the example under way is read from a file.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(*options: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "example"
        env = {"FUZZ_EXAMPLES": "3000", **os.environ, "FUZZ_LAST": str(last)}
        # -s: what faulthandler writes on a crash is to be seen, not captured.
        pytest = [sys.executable, "-X", "faulthandler", "-m", "pytest", "-q", "-s", "-o", "timeout=0", *options]
        done = subprocess.run([*pytest, "tests/test_fuzz.py"], cwd=ROOT, env=env, check=False)
        if done.returncode:
            print(
                f"fuzz: exit status {done.returncode}; the last example was {last.read_text() if last.exists() else 'none'}"
            )
        return done.returncode


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) == 0 else 1)
