"""What a model version is compared with: its training profile, held-out metrics and first scores."""
