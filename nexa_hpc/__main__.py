"""`python -m nexa_hpc` is the command line."""

from nexa_hpc.cli.main import main

if __name__ == "__main__":
    main()
