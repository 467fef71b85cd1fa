"""Rival unlearning methods that change the model's weights, as one trainer in the style of `ULDTrainer`."""
