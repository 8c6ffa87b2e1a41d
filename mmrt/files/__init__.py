"""Weight files: where they come from, what is in them, and how they come into memory."""
