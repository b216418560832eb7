"""The one JSON document that a benchmark prints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

from autoq.system.output import only_results


def reserve_output(wanted: bool) -> Callable[[object], None]:
    """What prints a document. Where one is wanted, all that is printed until then goes to standard error."""
    stack = contextlib.ExitStack()
    if wanted:
        stack.enter_context(only_results())

    def tell(document: object) -> None:
        stack.close()
        print(json.dumps(document, indent=2))

    return tell
