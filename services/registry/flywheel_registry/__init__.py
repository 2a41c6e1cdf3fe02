"""Models, versions, releases, gates and rollouts."""
