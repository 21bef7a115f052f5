"""Upkeep of a store: is it sound, what does it take, what can go, and how it moves to another driver."""
