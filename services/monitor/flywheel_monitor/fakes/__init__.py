"""In-memory adapters, held to the contract tests of the ports."""
