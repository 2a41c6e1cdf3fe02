"""A decoder-only transformer on sequences of tokens, trained with any parallel strategy by one setting."""
