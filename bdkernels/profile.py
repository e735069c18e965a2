"""Times one operator: `python -m bdkernels.profile`, which is `bdkernels.tools.profile`."""

from bdkernels.tools.profile import main

if __name__ == "__main__":
    main()
