"""PostgreSQL: pool, transactions, migrations, leases, idempotency keys."""
