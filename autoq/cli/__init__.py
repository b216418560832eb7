"""The command line: translates, one library call per command."""

from autoq.cli import deployment, files, networks, studies
from autoq.cli.frame import app, main

__all__ = ["app", "deployment", "files", "main", "networks", "studies"]
