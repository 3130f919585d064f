"""`python -m weightclass` is `weightclass`."""

from weightclass.cli import main

if __name__ == "__main__":
    main()
