"""Generators of the small world's conversations.

Each takes (rng, split) and returns a Sample; the same rng state gives the same sample, and nothing
a sample of one split turns on (a phrasing, a pair of numbers, a schema, a key) is in the other.
"""
