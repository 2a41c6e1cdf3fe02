"""The prediction log as Parquet files in object storage."""
