"""Training an assistant: `ULDTrainer` and what it is made of."""
