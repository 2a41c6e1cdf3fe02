"""The append-only audit of each model: entries, their hash chain and the reasons that it records."""
