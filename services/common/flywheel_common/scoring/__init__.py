"""From features to the answers of a release: the one computation that the gateway and batch jobs share."""
