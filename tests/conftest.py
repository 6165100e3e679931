"""Tests run tiny models: one thread each is fastest, and leaves the other cores to pytest-xdist."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# transformers' progress bars would fill the logs.
os.environ.setdefault("TQDM_DISABLE", "1")
