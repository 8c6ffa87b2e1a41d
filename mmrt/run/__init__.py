"""Models at work: sequences, sampling, generation and conversations."""
