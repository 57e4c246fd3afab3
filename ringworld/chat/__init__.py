"""Conversations: a session of turns, and the terminal."""
