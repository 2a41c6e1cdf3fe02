"""Source code of users: unpacking its archive, and loading the function of a job."""
