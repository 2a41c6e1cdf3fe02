"""Feature definitions, online and offline features, training sets."""
