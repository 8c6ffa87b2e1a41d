"""What tracing costs a decode: `python -m bench.trace_cost MODEL.gguf ... [-n 64] [-r 9]`.

Three ways of running take turns: not watched, watched by layer, watched by operation. What counts
is the median of the rounds' ratios to the unwatched one. That watching costs nothing while it is
off cannot be seen from here: that takes a build without it, to be named with --without, whose
decode is then measured in turn with this one's.
"""
