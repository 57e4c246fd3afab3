"""`python -m ringworld`: the command line."""

from ringworld.cli import program

if __name__ == "__main__":
    program()
