"""S3 adapters: tables, Delta, snapshots, working files."""
