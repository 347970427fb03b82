"""One compute thread a test process: there are as many of them as cores, and small tensors gain nothing from more.

Examples are the same in every run, so that a change is judged by what it changes and not by luck;
`HYPOTHESIS_PROFILE=search` draws new ones. What the user's own files say of flags counts for nothing.
"""

import gc
import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["SWARM_PEER_CONFIG"] = ""

settings.register_profile("same", derandomize=True)
settings.register_profile("search")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_finish() -> None:
    """What was imported and collected stays; the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
