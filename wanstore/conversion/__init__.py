"""How published weights become stored ones: a source, a plan made from headers, and one streaming pass."""
