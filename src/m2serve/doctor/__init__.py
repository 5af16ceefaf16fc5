"""Examines a running endpoint and reads engines' logs: is it right, and if not, what is known."""
