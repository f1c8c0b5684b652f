"""Many runs: sweeps from the command line, and the runs that a table needs."""
