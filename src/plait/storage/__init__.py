"""Folders that many processes write and that must survive kills and damage: hashes, records, locks, names."""
