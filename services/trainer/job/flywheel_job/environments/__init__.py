"""Environments of jobs that have packages of their own."""
