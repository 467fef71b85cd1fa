"""Baking: the unlearned model's distribution distilled into plain weights that load without uld_hf."""
