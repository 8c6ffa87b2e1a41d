"""Memory: what this machine has, what models hold of it, and budgets that they stay within."""
