"""What a test runs as a process of its own, of a minute or more."""

import os
import subprocess
import sys

from simulation import ROOT


def python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`python *arguments` in the root; what it says, errors among it, is in `stdout`."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
