"""Models and their versions: declaration, registration, lookup and stage changes."""
