"""What one would use instead of dsm, and dsm beside it: what benchmarks/peers.py measures, one module each."""
