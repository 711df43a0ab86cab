"""Runs on disk: run files, folders, checkpoints, metrics. Loads no tensor."""
