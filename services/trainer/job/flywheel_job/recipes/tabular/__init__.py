"""A feed-forward network for tabular binary classification, trained with PyTorch DDP and exported to ONNX."""
