"""Makers of documents: functions from a random generator to a list of messages (a chat) or to plain text."""
