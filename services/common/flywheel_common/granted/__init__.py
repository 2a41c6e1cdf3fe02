"""Access of jobs on a cluster to the object store without its key: a service signs each of their requests."""
