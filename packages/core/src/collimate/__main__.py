"""`python -m collimate` is the `collimate` command."""

from collimate.cli import main

if __name__ == "__main__":
    main()
