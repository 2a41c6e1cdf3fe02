"""Engines that run the steps of a partitioned join: a local process, Ray."""
