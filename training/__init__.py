"""Makes the miniature: a small world, its tokenizer, the training loop and the quiz."""
