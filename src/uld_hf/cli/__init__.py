"""The `uld` command: `uld demo`, `uld train`, `uld generate`."""
