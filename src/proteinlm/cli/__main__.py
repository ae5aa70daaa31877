"""`python -m proteinlm.cli`: the command line as torchrun starts it."""

from proteinlm.cli import main

if __name__ == "__main__":
    main()
