"""`python -m shapleycam`: the command line."""

from .cli import main

main()
