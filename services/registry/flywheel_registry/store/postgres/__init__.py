"""PostgreSQL adapters: named SQL statements beside the code that runs them."""
