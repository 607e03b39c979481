"""`python -m dimat` is the command `dimat`; torchrun starts agents this way."""

from dimat.cli.app import main

if __name__ == "__main__":
    main()
