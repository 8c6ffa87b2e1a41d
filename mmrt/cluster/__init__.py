"""One model over several machines: see docs/cluster.md."""
