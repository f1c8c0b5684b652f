"""What every program shares: its command line, mistakes in one line, signals, the console."""
