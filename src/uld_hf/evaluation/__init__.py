"""Evaluation: what a model still knows of the forget set, and whether it keeps the rest."""
