"""Unified Normalization for Transformers (arXiv 2208.01313): norms, model surgery, tasks and runs."""
