"""Settings of every test, made before torch is imported."""

import os

# The tests' tensors are small: one thread is as fast as several, and leaves the other cores alone. Child processes too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
