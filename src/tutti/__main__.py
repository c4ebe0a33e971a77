"""`python -m tutti` is `tutti`."""

from tutti.cli import main

if __name__ == "__main__":  # spawned workers import this module, and must not start a second run
    main()
