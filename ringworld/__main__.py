"""`python -m ringworld`: the command line."""

from ringworld.cli import main

if __name__ == "__main__":
    main()
