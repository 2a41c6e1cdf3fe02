"""Streams the labelled rows of a data set, and scores them with ONNX models."""
