"""What is done with a finished run: evaluate, fold, export."""
