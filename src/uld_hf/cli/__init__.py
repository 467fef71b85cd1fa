"""The `uld` command: a module for each of its commands, and what they have in common."""
