"""`python -m fastfwd`: the same as the command `fastfwd`."""

from fastfwd.cli import main

if __name__ == "__main__":
    main()
