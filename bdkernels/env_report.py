"""Describes this machine: `python -m bdkernels.env_report`, which is `bdkernels.tools.env_report`."""

from bdkernels.tools.env_report import main

if __name__ == "__main__":
    main()
