"""PostgreSQL, S3, Ray, DBOS and the peers: everything that leaves the process."""
