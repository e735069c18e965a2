"""One contender in a process of its own: `python -m benchmarks.child CASE CONTENDER`.

The child prints the MB that its first call took above its inputs, then makes one call for each line that it reads and prints a
digest of the result.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from types import TracebackType

from bdkernels.tools.measure import extra_mb


class Child:
    """The parent's side. Use as a context.

    Args:
        case, contender: see `cases.build`.
        tiny: the sizes of the tests.
        threads: OMP_NUM_THREADS of the child; None for the parent's.

    Attributes:
        extra_mb: peak memory of the first call above its inputs; None where the system does not say.
    """

    def __init__(self, case: str, contender: str, *, tiny: bool, threads: int | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.child", case, contender, *(["--tiny"] if tiny else [])]
        env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        answer = self._answer()
        self.extra_mb = None if answer == "None" else float(answer)

    def call(self) -> str:
        """One call of the contender; returns a digest of the tensors that it returned."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{' '.join(self.process.args)} ended with exit code {self.process.wait()}")
        return line.strip()

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate()


def main() -> None:
    from benchmarks.cases import build  # late: some cases are made of children

    parser = argparse.ArgumentParser(prog="python -m benchmarks.child", description=__doc__)
    parser.add_argument("case")
    parser.add_argument("contender")
    parser.add_argument("--tiny", action="store_true", help="the sizes of the tests")
    args = parser.parse_args()
    call = build(args.case, tiny=args.tiny).contenders[args.contender]
    if getattr(call, "sets_up", False):
        call()  # what the first call sets up once is not what every call needs
    print(extra_mb(call), flush=True)
    for _ in sys.stdin:
        result = call()
        print(hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in result)).hexdigest(), flush=True)


if __name__ == "__main__":
    main()
