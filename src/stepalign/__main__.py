"""Entry of `python -m stepalign`, for launchers of several processes."""

from stepalign.cli import main

if __name__ == "__main__":
    main()
