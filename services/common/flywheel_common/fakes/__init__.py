"""In-memory adapters; the contract tests run over them and over the real ones."""
