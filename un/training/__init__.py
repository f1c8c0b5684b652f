"""One run, from its config to its result. Tasks are reached by `_target_` only."""
