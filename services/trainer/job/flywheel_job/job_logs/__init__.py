"""The form of job logs on the object store, and their writer, which runs inside of jobs."""
