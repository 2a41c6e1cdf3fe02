"""ONNX Runtime in a process of its own."""
