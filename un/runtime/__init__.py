"""Runs: assembly from config, run folders, resume, seeding, logging. Tasks are reached by `_target_` only."""
