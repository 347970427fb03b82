"""One compute thread a test process: there are as many of them as cores, and small tensors gain nothing from more."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
