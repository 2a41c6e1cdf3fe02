"""Import of the runs of an MLflow tracking folder, SQLite file or server, without MLflow."""
