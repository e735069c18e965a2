"""MovieLens-100K, taken out of a package on PyPI.

The licence of MovieLens (GroupLens, University of Minnesota) allows use for research but no redistribution. So the data
is no part of this project: each user's machine downloads it, into a cache folder that belongs in no repository.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bidistill.errors import UserError
from bidistill.files.access import replacing

PACKAGE = "recbole==1.2.1"  # ships the data as an example; only its wheel is opened, nothing of it is installed or run
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
SHA256 = "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"


def movielens_100k(cache_dir: str | Path) -> Path:
    """The path of ml-100k.inter in `cache_dir`: 100,000 rows of user, item, rating (1 to 5) and time, for `read`.

    A file that is there is used without network; else it is downloaded (2 MB) by pip and checked.
    Raises UserError where that fails; the message says how to place the file by hand. A file of this name with other
    content is an error too: it may be someone's own, so it is not replaced.
    """
    target = Path(cache_dir) / "ml-100k.inter"
    if target.is_file():
        if hashlib.sha256(target.read_bytes()).hexdigest() == SHA256:
            return target
        raise UserError(
            f"MovieLens-100K: {target} is there but is not the file expected (sha256 differs); remove or rename it, or"
            " choose another cache folder"
        )
    by_hand = (
        f"; or put the file ml-100k.inter (sha256 {SHA256[:12]}...) of the wheel {PACKAGE} there by hand as {target}"
    )
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(Path(folder), by_hand)
        try:
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(MEMBER)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise UserError(f"MovieLens-100K: {wheel.name} lacks {MEMBER} ({error}); try again{by_hand}") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise UserError(
            f"MovieLens-100K: {MEMBER} of {wheel.name} is not the file expected (sha256 differs); try again{by_hand}"
        )
    with replacing(target) as temporary:
        temporary.write_bytes(data)
    return target


def _download(folder: Path, by_hand: str) -> Path:
    """Download the wheel into `folder` with pip and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=2", "--timeout=20", PACKAGE, f"--dest={folder}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"MovieLens-100K: pip download failed ({error}); check the network{by_hand}") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(f"MovieLens-100K: pip download of {PACKAGE} failed ({reason}); check the network{by_hand}")
    return wheels[0]
