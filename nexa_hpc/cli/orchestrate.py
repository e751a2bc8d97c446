"""`python -m nexa_hpc.cli.orchestrate`, the original form, is the same command line."""

from nexa_hpc.cli.main import main

if __name__ == "__main__":
    main()
