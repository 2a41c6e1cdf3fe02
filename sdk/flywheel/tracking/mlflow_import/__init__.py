"""Import of the runs of an MLflow tracking folder or SQLite file, without MLflow."""
