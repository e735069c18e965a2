"""Puts the tools of this folder on the path of the folders below it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
