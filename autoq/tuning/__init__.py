"""The search: which trial runs next, in worker processes of Ray."""

import os

LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable that Ray reads when it is imported. With 0 its processes listen on 127.0.0.1 alone; otherwise Ray
replaces that address by one that other machines reach.
"""

os.environ.setdefault(LOOPBACK_ONLY, "0")
