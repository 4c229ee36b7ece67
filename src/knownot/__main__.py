"""`python -m knownot` is the `knownot` command."""

from knownot.cli.main import main

main()
