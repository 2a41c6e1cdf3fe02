"""Streaming of data sets: each rank reads its own share of the rows, in an order that can be resumed."""
