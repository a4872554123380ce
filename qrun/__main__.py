"""`python -m qrun` is `qrun`."""

from qrun.cli.main import main

main()
