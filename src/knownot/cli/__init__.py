"""The `knownot` command: parse, call the library, print."""
