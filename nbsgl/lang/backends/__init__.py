"""Backends that are not our own engine: remote servers and API services."""
