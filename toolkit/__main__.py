"""`python -m adedge` is the command `adedge`."""

from adedge.cli import main

main()
