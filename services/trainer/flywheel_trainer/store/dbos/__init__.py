"""DBOS as the workflow engine."""
