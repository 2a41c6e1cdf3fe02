"""When an alert opens, is confirmed and is resolved, and what is published about it."""
