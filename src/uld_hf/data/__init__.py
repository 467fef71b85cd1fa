"""Forget and retain sets: TOFU, the shipped invented people, and their conversion to trl's formats."""
