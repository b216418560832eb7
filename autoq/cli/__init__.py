"""The command line: translates, one library call per command."""

from autoq.cli import files, networks, studies
from autoq.cli.frame import app, main

__all__ = ["app", "files", "main", "networks", "studies"]
