"""`python -m bnfold`."""

from .cli import main

main()
