"""Benchmarks of jaxmixed against its peers; ``python -m benchmarks.run`` runs them all."""
