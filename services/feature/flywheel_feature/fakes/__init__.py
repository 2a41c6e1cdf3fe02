"""In-memory adapters for tests; the contract tests run over them and over the real stores."""
