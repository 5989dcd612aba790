"""One module a command: what it is for, an example, its options, its work."""
