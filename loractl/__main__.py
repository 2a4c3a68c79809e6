"""`python -m loractl` is the `loractl` command."""

from loractl.cli import main

if __name__ == "__main__":
    main()
