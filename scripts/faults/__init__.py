"""Parts of `scripts/inject_faults.py`: faults that runs of `train.py` must survive."""
