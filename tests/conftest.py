"""Tests run tiny models: one thread each is fastest, and leaves the other cores to pytest-xdist."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# transformers' progress bars would fill the logs.
os.environ.setdefault("TQDM_DISABLE", "1")

# A shell starts what runs in its background with Ctrl-C ignored; programs that tests start would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
