"""The C core in Python: bindings, and the plain values that they take and give."""
