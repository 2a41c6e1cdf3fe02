"""PostgreSQL behind the registry's ports: named SQL beside the code that runs it."""
